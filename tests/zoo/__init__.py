"""Tests of all conversions and policies on networks of other packages with random weights: `make zoo`, docs/zoo.md."""
