"""Held-out tasks, asked of a model: within a run and by `cwm-rl eval`."""
