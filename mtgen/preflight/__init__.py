"""What can be known before a run: installation, a smoke test, cost and speed."""
