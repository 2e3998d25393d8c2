"""Options of `RecalibrateNorm`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class RecalibrateNormOptions:
    """Recalibrates running statistics on training batches before each validation."""

    every_n_epochs: Count = option(1, "epochs between two recalibrations; there is always one in the last epoch")
    max_batches: Count | None = option(
        50,
        "training batches of each rank to use; null: all",
        refusal="max_batches must be at least 1, got {value}; None is all of them",
    )


OPTIONS = {"RecalibrateNorm": RecalibrateNormOptions}
