"""Measure, fit, predict, and write docs/scaling.md with its pictures and tables."""

import csv
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.layers import resnet50_shapes
from benchmarks.scaling.measure import CHANNELS, WORLDS, Timing, cores, measure
from benchmarks.scaling.model import Costs, fit, predict
from benchmarks.scaling.page import page
from benchmarks.scaling.pictures import draw_collectives, draw_gpus
from benchmarks.scaling.tables import GPUS, STEP_IMAGES, errors_table, held_out, overlapped
from syncbn.cli.arguments import Parser
from syncbn.machine.scaling import Kind, Overlapped, StepSeconds, step_cost
from syncbn.norm.core.options import option

DOCS = Path(__file__).parents[2] / "docs"
MESSAGE_COLUMNS = ("design", "direction", "channels", "collective", "bytes", "ranks")
TIME_COLUMNS = ("q1_s", "median_s", "q3_s", "model_s", "in_fit")


@dataclass
class Options:
    """Options of `scripts/scaling.py`."""

    docs: Path = option(DOCS, "folder for scaling.md and scaling/")


PARSER = Parser("python scripts/scaling.py", __doc__, Options)


def main() -> None:
    """Read the command line, write the page and print its path."""
    PARSER.main(lambda words: print(write(PARSER.read(words).docs)))


def write(docs: Path, worlds: Sequence[int] = WORLDS, channels: Sequence[int] = CHANNELS) -> str:
    """Measure, fit and write the page; returns the model's errors and the page's path."""
    timings, scheduling = measure(worlds, channels)
    unseen = held_out(timings)
    seen = [timing for timing in timings if timing not in unseen]
    costs = fit((timing.point for timing in seen), cores())
    norms = [shape[1] for shape in resnet50_shapes(1)]
    folder = docs / "scaling"
    folder.mkdir(parents=True, exist_ok=True)
    _write_measured(timings, unseen, costs, folder / "measured.csv")
    _write_predicted(norms, folder / "predicted.csv")
    draw_collectives(timings, unseen, costs, cores(), folder / "collectives.png")
    draw_gpus(norms, GPUS, folder / "gpus.png")
    path = docs / "scaling.md"
    path.write_text(page(timings, unseen, costs, norms, _machine(), cores(), scheduling))
    return f"{errors_table(costs, unseen, cores())}\n\n{path}"


def _write_measured(timings: Sequence[Timing], unseen: Sequence[Timing], costs: dict[Kind, Costs], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MESSAGE_COLUMNS + TIME_COLUMNS)
        for timing in timings:
            message, point = timing.message, timing.point
            modelled = predict(costs[point.kind], point.kind, point.ranks, point.size, cores())
            sent = (message.design, message.direction, message.channels, message.kind, message.size, timing.ranks)
            seconds = [f"{value:.4e}" for value in (*timing.quartiles, modelled)]
            writer.writerow([*sent, *seconds, timing not in unseen])


def _write_predicted(norms: Sequence[int], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["gpus", "design", "low_s", "middle_s", "high_s"])
        for gpus in GPUS:
            for design in ("ours", "gather"):
                cost = step_cost(design, gpus, norms)
                writer.writerow([gpus, design, *_bounds(cost)])
            for images in STEP_IMAGES:
                writer.writerow([gpus, f"ours, overlap, {images} images", *_bounds(overlapped(gpus, norms, images))])


def _bounds(cost: StepSeconds | Overlapped) -> list[str]:
    return [f"{value:.4e}" for value in (cost.low, cost.middle, cost.high)]


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    today = datetime.now(UTC).date().isoformat()
    return f"On {today}, {processor}, {cores()} cores, Python {platform.python_version()}, torch {torch.__version__}."
