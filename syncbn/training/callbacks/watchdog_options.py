"""Options of `Watchdog`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Positive, option


@dataclass
class WatchdogOptions:
    """Stops all ranks when one hangs, and reports which one and where."""

    timeout_s: Positive = option(120.0, "time limit of a step, in seconds")
    slow_timeout_s: Positive = option(
        240.0,
        "time limit of all else: loading a batch, saving a checkpoint; less than trainer.strategy.timeout_s",
    )


OPTIONS = {"Watchdog": WatchdogOptions}
