"""Tasks; each is one file that registers itself."""
