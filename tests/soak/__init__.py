"""Runs that are stopped in every way there is, and go on: `python -m tests.soak minutes=<n> seed=<n>`."""
