"""Small-scale tests of claims of the literature: a plan written first, runs that follow it, and a verdict by code."""
