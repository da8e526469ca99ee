"""Named benchmarks: their tasks, the published tables, and how their tasks are run."""
