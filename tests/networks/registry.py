"""Registry of the kinds of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from tests.networks.maker import Maker

Make = Callable[["Maker"], nn.Module]


@dataclass(frozen=True)
class Kind:
    """A kind of node.

    Attributes:
        make: builds the module, which takes features (N, C, ...) and returns features.
        dims: allowed numbers of dimensions after (N, C).
        after: number of dimensions after (N, C) in its result; unchanged when None.
        chains: number of lists of inner nodes.
        row: whether it once gave silently wrong results, and must be in 5 % of all networks.
        source: public report of another project that it comes from.
    """

    make: Make
    dims: tuple[int, ...]
    after: int | None
    chains: int
    row: bool
    source: str | None


KINDS: dict[str, Kind] = {}


def kind(
    dims: str = "0123", *, after: int | None = None, chains: int = 0, row: bool = False, source: str | None = None
) -> Callable[[Make], Make]:
    """Register a function as a kind under its name."""

    def add(make: Make) -> Make:
        name = make.__name__
        assert name not in KINDS, name
        KINDS[name] = Kind(make, tuple(map(int, dims)), after, chains, row, source)
        return make

    return add
