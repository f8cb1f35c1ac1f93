"""Whole networks, pure Flax, no losses."""
