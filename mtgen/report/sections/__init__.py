"""The report's sections, one a file; each registers a function that gathers what it shows."""
