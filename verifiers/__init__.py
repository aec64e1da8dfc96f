"""Floor 0: what a task is, and what an answer is worth.

Whoever writes a verifier needs this package alone. It imports neither torch, ray, vllm nor docker, and nothing
from the floors above (`rollout_workers`, `rl`).
"""
