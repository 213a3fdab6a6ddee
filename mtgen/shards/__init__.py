"""Making, splitting, validating, describing and viewing data sets; each recipe is one file in `recipes/`."""
