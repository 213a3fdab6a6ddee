"""The sections of a report, one file per section; each registers a function that builds it."""
