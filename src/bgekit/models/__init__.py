"""What a model is: its card, its files, and the network that turns tokens into vectors."""
