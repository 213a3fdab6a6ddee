"""Evaluation of a model: metrics, reference models, and the snapshots of a run that trains."""
