"""Tables of docs/scaling.md in Markdown."""

import statistics
from collections.abc import Sequence

from benchmarks.hiding import layers_after_norms, shares
from benchmarks.scaling.measure import Timing
from benchmarks.scaling.model import Costs, relative_error
from benchmarks.scaling.published import MEASUREMENTS
from syncbn.machine.scaling import (
    GPUS_A_NODE,
    Kind,
    Overlapped,
    StepSeconds,
    largest_group,
    overlapped_cost,
    resnet50_step,
    step_cost,
    weight_gradient_seconds,
)

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
STEP_IMAGES = (256, 64)  # a GPU, of the steps that messages are compared with
ENOUGH_IMAGES = 32  # per group
UNSEEN_WORLD = 16
TOLERANCE = 0.2


def held_out(timings: Sequence[Timing]) -> list[Timing]:
    """Timings held out of the fit: every second message size, and the largest world."""
    sizes = sorted({timing.message.channels for timing in timings})
    return [t for t in timings if t.ranks == UNSEEN_WORLD or sizes.index(t.message.channels) % 2]


def designs_table(timings: Sequence[Timing], channels: Sequence[int]) -> str:
    """Messages of a ResNet-50 step, summed over its norms, for each design."""
    seconds = {(t.message.design, t.message.direction, t.message.channels, t.ranks): t.seconds for t in timings}
    rows = []
    for world in sorted({t.ranks for t in timings}):
        ours, gather = (
            sum(seconds[design, way, count, world] for count in channels for way in ("forward", "backward"))
            for design in ("ours", "gather")
        )
        rows.append(f"| {world} | {1e3 * ours:,.1f} | {1e3 * gather:,.1f} | {ours / gather:.2f} |")
    return _table("| ranks | all-reduce, ms | all-gather, ms | ratio |\n|--:|--:|--:|--:|", rows)


def costs_table(costs: dict[Kind, Costs]) -> str:
    """Fitted parameters."""
    rows = [
        f"| {kind.replace('_', '-')} | {1e6 * c.base:.1f} | {1e6 * c.latency:.1f} | {1e9 * c.per_byte:.2f} |"
        for kind, c in costs.items()
    ]
    return _table("| | base, µs | latency of a step, µs | a byte, ns |\n|---|--:|--:|--:|", rows)


def errors_table(costs: dict[Kind, Costs], unseen: Sequence[Timing], cores: int) -> str:
    """Errors of the model on held-out points."""
    parts = {
        "other sizes, on as many ranks as in the fit": [t for t in unseen if t.ranks != UNSEEN_WORLD],
        f"{UNSEEN_WORLD} ranks, all sizes": [t for t in unseen if t.ranks == UNSEEN_WORLD],
        "all": list(unseen),
    }
    rows = []
    for name, timings in parts.items():
        if not timings:
            continue
        errors = sorted(abs(relative_error(costs, t.point, cores)) for t in timings)
        within = sum(error <= TOLERANCE for error in errors)
        ninety = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
        shown = " | ".join(f"{error:.1%}" for error in (statistics.median(errors), ninety, errors[-1]))
        rows.append(f"| {name} | {within} of {len(errors)} | {shown} |")
    head = f"| not in the fit | within {TOLERANCE:.0%} | median error | 90th percentile | largest |"
    return _table(f"{head}\n|---|--:|--:|--:|--:|", rows)


def gpus_table(channels: Sequence[int]) -> str:
    """Time and share of a step on GPUs, with intervals."""
    rows = []
    for gpus in GPUS:
        ours, gather = step_cost("ours", gpus, channels), step_cost("gather", gpus, channels)
        columns = [
            _interval(ours),
            *(_interval(ours, resnet50_step(images)) for images in STEP_IMAGES),
            *(_interval(overlapped(gpus, channels, images), resnet50_step(images)) for images in STEP_IMAGES),
            _interval(gather),
        ]
        rows.append(f"| {gpus:,} | {' | '.join(columns)} |")
    head = (
        "| GPUs | all-reduce, ms | % of a step of 256 images a GPU | % of one of 64 | % of 256 with overlap | "
        "% of 64 with overlap | all-gather, ms |"
    )
    return _table(f"{head}\n|--:|--:|--:|--:|--:|--:|--:|", rows)


def overlapped(gpus: int, channels: Sequence[int], images: int) -> Overlapped:
    """Cost of ResNet-50's messages in a step of so many images a GPU, with overlap."""
    hiding = weight_gradient_seconds(resnet50_step(images), shares(layers_after_norms(1)))
    return overlapped_cost(gpus, channels, hiding)


def published_table() -> str:
    """Published measurements."""
    rows = [f"| {m.what} | {m.machine} | {m.found} | {m.source} |" for m in MEASUREMENTS]
    return _table("| what | machine | found | source |\n|---|---|---|---|", rows)


def enough_table(channels: Sequence[int]) -> str:
    """Smallest group with enough images, and its cost."""
    rows = []
    for images in (1, 2, 4, 8, 16):
        group = max(GPUS_A_NODE, ENOUGH_IMAGES // images)
        cost = step_cost("ours", group, channels)
        setting = "node" if group == GPUS_A_NODE else str(group)
        rows.append(f"| {images} | `{setting}` | {group * images} | {_interval(cost)} |")
    head = "| images a GPU | `norm.sync_group` | images a group | ms a step |"
    return _table(f"{head}\n|--:|---|--:|--:|", [*rows, "| 32 and more | not needed: `norm=batch` | | 0 |"])


def budget_table(channels: Sequence[int]) -> str:
    """Largest group for a share of the step."""
    budgets = (0.05, 0.1, 0.2)
    rows = [
        f"| {images} | {1e3 * resnet50_step(images):.0f} | "
        + " | ".join(f"{largest_group(budget, resnet50_step(images), channels):,}" for budget in budgets)
        + " |"
        for images in (64, 128, 256)
    ]
    head = "| images a GPU | step, ms | " + " | ".join(f"at most {budget:.0%}" for budget in budgets) + " |"
    return _table(f"{head}\n|--:|--:|{'--:|' * len(budgets)}", rows)


def _interval(cost: StepSeconds | Overlapped, step: float | None = None) -> str:
    """Format an interval in milliseconds, or in percent of a step."""
    scale = 1e3 if step is None else 100 / step
    return f"{scale * cost.middle:,.1f} ({scale * cost.low:,.1f}-{scale * cost.high:,.1f})"


def _table(head: str, rows: Sequence[str]) -> str:
    return "\n".join([head, *rows])
