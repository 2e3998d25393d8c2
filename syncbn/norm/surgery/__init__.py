"""Norms in finished models: what a network computes, and which of its layers are exchanged for others."""
