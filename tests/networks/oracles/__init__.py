"""Oracles for each policy, computed in float64 with only torch, from a network built a second time."""
