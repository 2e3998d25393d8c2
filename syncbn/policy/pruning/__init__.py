"""Implementation of `prune`: numbered channels, the effect of each operation on them, a smaller network, its proof."""
