"""From rows on disk to batches: datasets, the passages that are drawn, which rows form which batch, token ids."""
