"""Timings beside peers measured in the same run: `make bench`."""
