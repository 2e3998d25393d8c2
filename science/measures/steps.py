"""Training steps, and time, to given validation accuracies."""

import time
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from science.measures.training import fit
from science.runs import Setting
from syncbn.run.fit import test


class Point(NamedTuple):
    """A validation: steps of training until then, their seconds by the clock and of the process, and its accuracy."""

    step: int
    seconds: float
    core_seconds: float
    accuracy: float


class ValidationCurve(Callback):
    """Record each validation, with the time of the training steps alone."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.seconds = self.core_seconds = 0.0
        self._started = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds, core_seconds = self._started
        self.seconds += time.perf_counter() - seconds
        self.core_seconds += time.process_time() - core_seconds

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val/acc"])
        self.points.append(Point(trainer.global_step, self.seconds, self.core_seconds, accuracy))


def steps(setting: Setting) -> dict[str, float]:
    """Measure the steps to each accuracy of the option `levels`, in percent, and the test metrics.

    - `steps_to_<level>`: first validated step with that accuracy; if it is never reached, all steps of the training,
      a lower bound.
    - `seconds_to_<level>`, `core_seconds_to_<level>`: time of these training steps, by the clock and of the process.
    - `reached_<level>`: 1 if it is reached.
    """
    curve = ValidationCurve()
    fitted = fit(setting.config, setting.world, [curve])
    end = Point(fitted.trainer.global_step, curve.seconds, curve.core_seconds, 0.0)
    found: dict[str, float] = {}
    for level in setting.options["levels"]:
        first = next((point for point in curve.points if 100 * point.accuracy >= level), None)
        step, seconds, core_seconds, _ = first or end
        found |= {f"steps_to_{level}": step, f"seconds_to_{level}": seconds, f"core_seconds_to_{level}": core_seconds}
        found[f"reached_{level}"] = float(first is not None)
    return {**{name: float(value) for name, value in found.items()}, **test(fitted)}
