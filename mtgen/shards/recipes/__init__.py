"""Recipes for data sets: one file each, which registers itself."""
