"""Search by meaning: indexes over vectors with the ids and texts they belong to, and the demo's corpus."""
