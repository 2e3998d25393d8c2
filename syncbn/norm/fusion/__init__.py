"""Fusion of a norm, a shortcut and an activation into one function."""
