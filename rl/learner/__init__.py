"""The learner: packed batches in, one optimiser step, weights out."""
