"""Formats that data sets are exported to: one file each, which registers itself."""
