"""Kinds of feature extractors, one file per kind.

Each registers a function that loads a network (uint8 images `[B,3,H,W]` -> `[B,D]`) from a file.
"""
