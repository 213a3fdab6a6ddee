"""The networks of a run: assembling, averaging, loading and sampling them, and the files that belong to them."""
