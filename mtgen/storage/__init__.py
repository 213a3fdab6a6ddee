"""Local and remote files, and the local cache of remote ones."""
