"""Timings compared with peers that are measured in the same run: `make bench`."""
