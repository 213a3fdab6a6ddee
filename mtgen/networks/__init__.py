"""Layers and the two networks."""
