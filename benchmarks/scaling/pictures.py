"""Pictures of docs/scaling.md."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.scaling.measure import WORLDS, Timing
from benchmarks.scaling.model import Costs, predict
from syncbn.machine.scaling import Kind, step_cost

COLOURS = {2: "#4477aa", 4: "#228833", 8: "#ccbb44", 16: "#ee6677"}  # Paul Tol's "bright"
DESIGNS = {"ours": ("#4477aa", "all-reduce (this package)"), "gather": ("#ee6677", "all-gather")}


def draw_collectives(
    timings: Sequence[Timing], held_out: Sequence[Timing], costs: dict[Kind, Costs], cores: int, path: Path
) -> None:
    """Draw measured times over message sizes and the model's lines; held-out points are hollow."""
    figure = _figure()
    titles: dict[Kind, str] = {"all_reduce": "All-reduce", "all_gather": "All-gather"}
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for world in WORLDS:
            chosen = [t for t in timings if t.ranks == world and t.message.kind == kind]
            sizes = sorted({t.message.size for t in chosen})
            axes.plot(
                sizes,
                [1e6 * predict(costs[kind], kind, world, size, cores) for size in sizes],
                color=COLOURS[world],
                linewidth=1.2,
                label=f"{world} ranks",
            )
            for hollow in (False, True):
                shown = [t for t in chosen if (t in held_out) == hollow]
                face = "none" if hollow else COLOURS[world]
                axes.plot(
                    [t.message.size for t in shown],
                    [1e6 * t.seconds for t in shown],
                    "o",
                    markersize=4,
                    color=COLOURS[world],
                    markerfacecolor=face,
                )
        axes.set(title=title, xlabel="bytes a rank", xscale="log", yscale="log")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("µs a call")
    lines = figure.axes[0].get_legend_handles_labels()
    title = "lines: the model; points: measured, hollow where not in the fit"
    figure.legend(*lines, loc="outside lower center", ncols=len(WORLDS), frameon=False, title=title)
    figure.savefig(path)


def draw_gpus(channels: Sequence[int], worlds: Sequence[int], path: Path) -> None:
    """Draw the cost of the norms' collectives in a ResNet-50 step, for both designs, with intervals."""
    figure = _figure(width=7)
    axes = figure.subplots()
    for design, (colour, label) in DESIGNS.items():
        costs = [step_cost(design, world, channels) for world in worlds]
        axes.plot(worlds, [1e3 * c.middle for c in costs], "o-", color=colour, markersize=4, label=label)
        axes.fill_between(
            worlds, [1e3 * c.low for c in costs], [1e3 * c.high for c in costs], color=colour, alpha=0.2, linewidth=0
        )
    axes.set(
        title="Collectives of ResNet-50's 53 norms, by the model",
        xlabel="GPUs that synchronize, 8 a node",
        ylabel="ms a training step",
        xscale="log",
        yscale="log",
    )
    axes.set_xticks(worlds, [f"{world:,}" for world in worlds])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)


def _figure(width: float = 10) -> Figure:
    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
