"""Norms in finished models: recording what a network computes, and replacing its layers."""
