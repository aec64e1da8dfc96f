"""Floor 1: how a task becomes a trajectory. Imports `verifiers`, never `rl`."""
