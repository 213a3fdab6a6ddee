"""Weighting methods; each file registers one, or several of one family."""
