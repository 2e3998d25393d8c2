"""Report of an inspection: a row for each layer and warnings, as text, tables and a picture."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NormRow:
    """Measurements of one batch normalization layer; None for those not taken.

    Attributes:
        layer: its name in the model.
        kind: its class.
        channels: C.
        samples: values per channel in the largest batch, of this rank, or of all ranks if the layer is synchronized.
        mean_distance: |running_mean - mean of the batches|, in standard deviations of the batches; the root mean square
            over channels.
        std_ratio: the larger of √running_var and the standard deviation of the batches over the smaller one; the
            geometric mean over channels, at least 1.
        gap: difference between the layer's outputs in evaluation and in training, relative to γ: the root mean square
            over channels and batches of y_eval - y_train over that of γ.
        dead: channels with |γ| below a thousandth of the layer's largest, or with a running variance below eps.
        exploding: channels with statistics, γ or β that aren't finite, or with a running variance that is negative or
            above 1e6.
        drift: distance of the batches' means from the reference's, in the reference's standard deviations.
        rank_difference: standard deviation of the running means over ranks, in running standard deviations; the largest
            over channels.
    """

    layer: str
    kind: str
    channels: int
    samples: int | None = None
    mean_distance: float | None = None
    std_ratio: float | None = None
    gap: float | None = None
    dead: int = 0
    exploding: int = 0
    drift: float | None = None
    rank_difference: float | None = None


@dataclass(frozen=True)
class NormWarning:
    """A warning about a layer.

    Attributes:
        identifier: name of its page, docs/warnings/<identifier>.md.
        layer: name of the layer in the model.
        message: finding and remedy.
    """

    identifier: str
    layer: str
    message: str

    def __str__(self) -> str:
        return f"[{self.identifier}] {self.layer or 'the model'}: {self.message}"


_HEADER = tuple(field.name for field in fields(NormRow))
_DRAWN = ("mean_distance", "std_ratio", "gap", "drift")  # comparable between layers


@dataclass(frozen=True)
class NormReport:
    """Rows, one per batch normalization layer in model order, and warnings."""

    rows: list[NormRow]
    warnings: list[NormWarning]

    def to_markdown(self) -> str:
        """Format a table of the rows and a list of the warnings."""
        lines = [
            _table_row(_HEADER),
            _table_row(["---"] * len(_HEADER)),
            *(_table_row(_cells(row)) for row in self.rows),
        ]
        lines += ["", *(f"- {warning}" for warning in self.warnings)] if self.warnings else ["", "No warnings."]
        return "\n".join(lines) + "\n"

    def to_rich(self) -> Any:
        """Make a `rich.table.Table` of the rows. Needs rich."""
        from rich.table import Table

        table = Table(*_HEADER)
        marked = {warning.layer for warning in self.warnings}
        for row in self.rows:
            table.add_row(*_cells(row), style="yellow" if row.layer in marked else None)
        return table

    def to_wandb(self) -> Any:
        """Make a `wandb.Table` of the rows. Needs wandb."""
        import wandb

        return wandb.Table(columns=list(_HEADER), data=[[getattr(row, name) for name in _HEADER] for row in self.rows])

    def plot(self, path: str | Path) -> None:
        """Draw distances and gaps of all layers as a heat map, a PNG file. Needs matplotlib."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = [name for name in _DRAWN if any(getattr(row, name) is not None for row in self.rows)]
        if not columns:
            raise ValueError("there is nothing to draw without batches: syncbn.inspect(model, batches)")
        values = [[_number(getattr(row, name)) for name in columns] for row in self.rows]
        figure = Figure(figsize=(3 + 1.5 * len(columns), 2 + 0.25 * len(self.rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=2)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(self.rows)), [row.layer for row in self.rows])
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                axes.text(x, y, f"{value:.2g}", ha="center", va="center", color="black" if value > 1 else "white")
        figure.colorbar(image, extend="max")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def _cells(row: NormRow) -> list[str]:
    values = (getattr(row, name) for name in _HEADER)
    return ["" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]


def _table_row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
