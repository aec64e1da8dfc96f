"""The supervised warm start."""
