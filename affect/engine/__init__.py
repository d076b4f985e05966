"""Training by iterations: schedule, loop, checkpoints, curves."""
