"""A network with its objective: what the loop trains."""
