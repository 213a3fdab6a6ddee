"""Conditions of the generator; each modality is one file that registers itself."""
