"""Foundations of the normalization layers: moments, exchange, tracking, options, registry."""
