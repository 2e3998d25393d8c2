"""Options of fine-tuning."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option, required


@dataclass
class FreezeNormOptions:
    """Freezes norms."""

    stats: bool = option(True, "whether running statistics are frozen")
    affine: bool = option(False, "whether γ and β are frozen")
    include: str | list[str] | None = option(None, "globs of names of norms, as net.layer1.*; null: all")
    exclude: str | list[str] | None = option(None, "globs of names of norms to leave unchanged")


@dataclass
class TrainOnlyOptions:
    """Trains only some of the parameters."""

    layers: list[str] = option([], "globs of names of parameters, as net.fc.*")
    norms: bool = option(False, "whether γ and β of every norm are trained too")


@dataclass
class GradualUnfreezingOptions:
    """Unfreezes the stages of a network one after the other."""

    stages: list[str] = required("globs of names of parameters, in order, as net.fc.*")
    every_n_epochs: Count = option(1, "epochs between two stages")
    frozen_stats_epochs: Natural = option(0, "number of last epochs in which running statistics are frozen")


OPTIONS = {
    "FreezeNorm": FreezeNormOptions,
    "TrainOnly": TrainOnlyOptions,
    "GradualUnfreezing": GradualUnfreezingOptions,
}
