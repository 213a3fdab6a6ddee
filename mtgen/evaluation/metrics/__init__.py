"""The metrics, one file per metric; each registers itself under the name of its (first) number."""
