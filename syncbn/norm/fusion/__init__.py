"""A norm, a shortcut and an activation as one function."""
