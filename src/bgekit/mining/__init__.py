"""Hard negatives for training data, copies taken out of it, and a teacher's scores put into it."""
