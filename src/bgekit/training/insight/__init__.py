"""Insight into a training run: dry run before it, diagnosis during it, curves after it."""
