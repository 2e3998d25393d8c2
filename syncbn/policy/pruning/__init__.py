"""How `prune` works: channels by number, what each operation does to them, a smaller network, and its proof."""
