"""Evaluation data of any known form -> tasks. `detect.py` is the entry; each other module knows one form."""
