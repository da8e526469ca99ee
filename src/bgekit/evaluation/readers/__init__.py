"""Evaluation data of any known form -> tasks. `detect.py` is the entry, the others know the forms."""
