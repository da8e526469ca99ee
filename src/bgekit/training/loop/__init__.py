"""The loop: arguments, trainer, gradient cache, checkpoints, one run from data to model."""
