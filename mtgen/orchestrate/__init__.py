"""Ray places the workers and replaces lost ones: the one folder that imports it."""
