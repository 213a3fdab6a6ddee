"""Data sets made, split, checked, described and shown; each recipe is one file in `recipes/`."""
