"""Print the tables: `python -m benchmarks`."""

from rich.console import Console
from rich.table import Table

from benchmarks import norms
from benchmarks.layers import IMAGES, LAYERS, REPEATS, measure

# What SyncBatchNorm may take of a peer's time, by peer and memory format.
LIMITS = {
    ("nn.BatchNorm2d, unsynchronized", "contiguous"): 1.3,
    ("nn.BatchNorm2d, unsynchronized", "channels_last"): 2.0,
    ("all-gather and autograd", "contiguous"): 0.4,
    ("all-gather and autograd", "channels_last"): 0.4,
}


# What a training step with cross-iteration BN may take of one with BN.
CROSS_ITERATION_LIMIT = 1.35


def main() -> None:
    console = Console()
    console.print(sync_table())
    console.print(norm_table())


def norm_table() -> Table:
    """Every norm of the registry beside batch normalization."""
    table = Table(
        title=f"A training step of the CIFAR ResNet-18 at batch {norms.BATCH}, 1 process of 1 thread",
        caption=f"Medians of {norms.REPEATS} steps, in turns with batch normalization; quartiles beside the ratios. "
        "State: buffers and windows.",
    )
    for column in ("norm", "ms", "of BN's time", "state, kB", ""):
        table.add_column(column, justify="left" if column == "norm" else "right")
    for cost in norms.measure():
        low, high = cost.quartiles
        verdict = ""
        if cost.norm == "cross_iteration":
            verdict = "met" if cost.ratio <= CROSS_ITERATION_LIMIT else f"MISSED: {CROSS_ITERATION_LIMIT}"
        ratio = f"{cost.ratio:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(cost.norm, f"{cost.milliseconds:.0f}", ratio, f"{cost.state / 1e3:.0f}", verdict)
    return table


def sync_table() -> Table:
    """SyncBatchNorm beside its peers."""
    ours, *peers = LAYERS
    table = Table(
        title="SyncBatchNorm, forward and backward over ResNet-50's 53 layers",
        caption=f"{IMAGES} images a rank, 2 gloo ranks of 1 thread, {REPEATS} repeats. "
        "Beside each ratio, the quartiles of single repeats.",
    )
    for column in ("memory format", "layer", "ms", "SyncBatchNorm takes", "at most", ""):
        table.add_column(column, justify="left" if column in ("memory format", "layer") else "right")
    for timing in measure():
        for layer in LAYERS:
            milliseconds = f"{1e3 * timing.total(layer):.0f}"
            if layer not in peers:
                table.add_row(timing.memory_format, layer, milliseconds)
                continue
            ratio, (low, high) = timing.ratio(ours, layer), timing.spread(ours, layer)
            limit = LIMITS[layer, timing.memory_format]
            verdict = "met" if ratio <= limit else "MISSED"
            table.add_row("", layer, milliseconds, f"{ratio:.2f} ({low:.2f}-{high:.2f})", f"{limit}", verdict)
        table.add_section()
    return table


if __name__ == "__main__":
    main()
