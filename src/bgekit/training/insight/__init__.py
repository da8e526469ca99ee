"""What a run will do, does and did: dry run, diagnosis, curves."""
