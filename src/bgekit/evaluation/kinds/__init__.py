"""One module for each kind of task: its data, MTEB's protocol for it, its metrics."""
