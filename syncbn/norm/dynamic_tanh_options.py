"""Options of `dynamic_tanh`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Pointwise


@dataclass
class DynamicTanhOptions(Pointwise):
    """Dynamic tanh (Zhu et al. 2025): tanh(α·x), without statistics."""


OPTIONS = {"dynamic_tanh": DynamicTanhOptions}
