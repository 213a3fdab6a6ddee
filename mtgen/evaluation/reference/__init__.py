"""Reference models: small networks, independent of every run, that evaluate the images of a run."""
