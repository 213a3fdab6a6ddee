"""Checks before a run: installation, a smoke test, a dry run, cost and speed."""
