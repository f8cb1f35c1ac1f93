"""Weights of other libraries to our parameters, and back."""
