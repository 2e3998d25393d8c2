"""Tests of the policies on random networks: `python -m tests.networks`."""

from tests.networks.generate import ROWS, Description, Network, build, generate, random_spec
from tests.networks.registry import KINDS
from tests.networks.spec import Node, Spec, parse

__all__ = ["KINDS", "ROWS", "Description", "Network", "Node", "Spec", "build", "generate", "parse", "random_spec"]
