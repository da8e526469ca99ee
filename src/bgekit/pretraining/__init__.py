"""Pre-training of encoders on plain text: RetroMAE (arXiv:2205.12035)."""
