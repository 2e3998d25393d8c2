"""Number of training steps to given validation accuracies."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from science.measures.training import fit
from science.runs import Setting
from syncbn.run.fit import test


class ValidationCurve(Callback):
    """Record (step, accuracy) of each validation."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.points.append((trainer.global_step, float(trainer.callback_metrics["val/acc"])))


def steps(setting: Setting) -> dict[str, float]:
    """Measure the steps to each accuracy of the option `levels`, in percent, and the test metrics.

    - `steps_to_<level>`: first validated step with that accuracy; if it is never reached, all steps of the training,
      a lower bound.
    - `reached_<level>`: 1 if it is reached.
    """
    curve = ValidationCurve()
    fitted = fit(setting.config, setting.world, [curve])
    found: dict[str, Any] = {}
    for level in setting.options["levels"]:
        first = [step for step, accuracy in curve.points if 100 * accuracy >= level]
        found[f"steps_to_{level}"] = first[0] if first else fitted.trainer.global_step
        found[f"reached_{level}"] = bool(first)
    return {**{name: float(value) for name, value in found.items()}, **test(fitted)}
