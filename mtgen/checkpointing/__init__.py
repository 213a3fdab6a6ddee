"""Checkpoints of a run: written, verified, kept, mirrored, and written beside training."""
