"""Training: the loop, optimizers, schedules, checkpoints."""
