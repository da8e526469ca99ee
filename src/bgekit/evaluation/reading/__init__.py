"""Evaluation data of any known form -> tasks. `folder.py` is the entry; each other module knows one form."""

from .folder import read_tasks

__all__ = ["read_tasks"]
