"""The options that norms share, each declared once."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from syncbn.norm.core.options import Count, Fraction, Positive, option

Memory = Literal["keep", "recompute", "invert"]  # what a norm fused with its activation keeps for the gradient
Size = Count | Literal["node", "world"]  # of a group of ranks


@dataclass
class Affine:
    """Of layers that divide by a deviation, and scale and shift."""

    eps: Positive = option(1e-5, "added to the variance")
    affine: bool = option(True, "whether there are γ (`weight`) and β (`bias`), per channel")


@dataclass
class Biased(Affine):
    """Of layers over a batch's statistics, now or once."""

    bias: bool = option(True, "whether an affine layer has β")


@dataclass
class Running(Biased):
    """Of layers with running statistics."""

    momentum: Fraction | None = option(
        0.1,
        "weight of the new batch in the running statistics; null: the average over all batches seen",
        refusal="momentum must be in [0, 1], or None for the average of all batches, got {value}",
    )
    keras_momentum: Fraction | None = option(
        None,
        "in the place of momentum, as Keras counts it: 0.99 is momentum=0.01",
        refusal="keras_momentum must be in [0, 1], got {value}; Keras's own default is 0.99",
    )


@dataclass
class Tracking(Running):
    """Of layers that can do without running statistics."""

    track_running_stats: bool = option(
        True, "whether there are running statistics; without, evaluation takes the batch's own"
    )


@dataclass
class Pointwise:
    """Of layers that squash every number by itself."""

    alpha_init: Positive = option(0.5, "where α starts")
    affine: bool = option(True, "whether there are γ (`weight`) and β (`bias`), per channel")
    channel_dim: Literal[1, -1] = option(
        1,
        "the dimension of the channels; -1: the last, as of tokens",
        refusal="channel_dim must be 1, for (N, C, *), or -1, for (N, L, C), got {value}",
    )


class Shared(TypedDict, total=False):
    """Options of `Running` that every layer hands on by name, as `**shared`; `TrackingNorm` makes attributes of them.

    Those of version 0.1 stand in the layers' signatures, where they are given by place, too.
    """


@dataclass
class Synchronized:
    """Of layers over all ranks' batches. In code, `process_group=syncbn.sync_group(size)` says the same."""

    sync_group: Size = option("world", "the ranks to synchronize over: all, those of a node, or groups of so many")
