"""Pairs in, scores out: cross-encoders, on the packing, batching and devices of the other rooms."""
