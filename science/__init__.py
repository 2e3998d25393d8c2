"""Claims of the literature, tested small: a plan is written first, runs follow it, and code judges."""
