"""Options shared by norms, each declared once."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from syncbn.norm.core.options import Count, Fraction, Positive, option

Memory = Literal["keep", "recompute", "invert"]  # what a norm fused with its activation saves for the gradient
Size = Count | Literal["node", "world"]  # size of a group of ranks


@dataclass
class Affine:
    """Options of layers that divide by a standard deviation, and scale and shift."""

    eps: Positive = option(1e-5, "added to the variance")
    affine: bool = option(True, "whether there are γ (`weight`) and β (`bias`), per channel")


@dataclass
class Biased(Affine):
    """Options of layers over batch statistics, current or earlier ones."""

    bias: bool = option(True, "whether an affine layer has β")


@dataclass
class Running(Biased):
    """Options of layers with running statistics."""

    momentum: Fraction | None = option(
        0.1,
        "weight of the new batch in the running statistics; null: the mean over all batches",
        refusal="momentum must be in [0, 1], or None for the average of all batches, got {value}",
    )
    keras_momentum: Fraction | None = option(
        None,
        "momentum in Keras's convention, instead of momentum: 0.99 is momentum=0.01",
        refusal="keras_momentum must be in [0, 1], got {value}; Keras's own default is 0.99",
    )


@dataclass
class Tracking(Running):
    """Options of layers with optional running statistics."""

    track_running_stats: bool = option(
        True, "whether there are running statistics; without them, evaluation uses the batch's"
    )


@dataclass
class Pointwise:
    """Options of elementwise squashing layers."""

    alpha_init: Positive = option(0.5, "initial α")
    affine: bool = option(True, "whether there are γ (`weight`) and β (`bias`), per channel")
    channel_dim: Literal[1, -1] = option(
        1,
        "dimension of the channels; -1: the last, as for tokens",
        refusal="channel_dim must be 1, for (N, C, *), or -1, for (N, L, C), got {value}",
    )


class Shared(TypedDict, total=False):
    """Options of `Running` that every layer passes on by name, as `**shared`, to `TrackingNorm`, which stores them.

    Those of version 0.1 are in the layers' signatures, since they may be positional.
    """


@dataclass
class Synchronized:
    """Options of layers over all ranks' batches. In code, use `process_group=syncbn.sync_group(size)`."""

    sync_group: Size = option("world", "ranks to synchronize over: all, those of a node, or groups of n")
