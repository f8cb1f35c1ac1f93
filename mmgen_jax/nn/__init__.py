"""Layers and towers."""
