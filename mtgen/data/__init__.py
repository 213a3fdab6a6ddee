"""Data sets read into batches: index, order, decoding, geometry, text and sound."""
