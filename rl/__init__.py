"""Floor 2: how trajectories become better weights, and the service round it."""
