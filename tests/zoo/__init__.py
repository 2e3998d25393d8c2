"""Networks of other packages, with random weights, through every conversion and policy: `make zoo`, docs/zoo.md."""
