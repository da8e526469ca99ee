"""Kinds of tasks, a module each: data, MTEB's protocol for it, metrics."""
