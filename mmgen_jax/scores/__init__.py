"""Scores in NumPy, on the host."""
