"""Checkpoints of a run: written in the background, verified, retained and mirrored."""
