"""Batches from rows on disk: datasets, the passages that are drawn, which rows form which batch, token ids."""
