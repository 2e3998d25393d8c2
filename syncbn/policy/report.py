"""What an inspection found: a row for each layer and warnings, as text, tables and a picture."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NormRow:
    """One batch normalization layer. What wasn't measured is None.

    Attributes:
        layer: its name in the model.
        kind: its class.
        channels: C.
        samples: values of a channel in the largest batch, of this rank, or of all ranks if the layer is synchronized.
        mean_distance: |running_mean - mean of the batches|, in standard deviations of the batches; the root mean square
            over channels.
        std_ratio: the larger of √running_var and the standard deviation of the batches over the smaller one; the
            geometric mean over channels, at least 1.
        gap: how far the layer's output in evaluation is from its output in training, relative to γ: the root mean
            square over channels and batches of y_eval - y_train over that of γ.
        dead: channels with |γ| below a thousandth of the layer's largest, or with a running variance below eps.
        exploding: channels with statistics, γ or β that aren't finite, or with a running variance above 1e6.
        drift: the distance of the batches' means from those of the reference, in the reference's deviations.
        rank_difference: the standard deviation over ranks of their running means, in running standard deviations; the
            largest of a channel.
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
    """Something to look at.

    Attributes:
        identifier: the name of its page, docs/warnings/<identifier>.md.
        layer: the layer's name in the model.
        message: what was found and what to do.
    """

    identifier: str
    layer: str
    message: str

    def __str__(self) -> str:
        return f"[{self.identifier}] {self.layer or 'the model'}: {self.message}"


_HEADER = tuple(field.name for field in fields(NormRow))
_DRAWN = ("mean_distance", "std_ratio", "gap", "drift")  # numbers that are comparable over layers


@dataclass(frozen=True)
class NormReport:
    """Rows, one a batch normalization layer in the order of the model, and warnings."""

    rows: list[NormRow]
    warnings: list[NormWarning]

    def to_markdown(self) -> str:
        """A table of the rows, and a list of the warnings."""
        lines = [
            _table_row(_HEADER),
            _table_row(["---"] * len(_HEADER)),
            *(_table_row(_cells(row)) for row in self.rows),
        ]
        lines += ["", *(f"- {warning}" for warning in self.warnings)] if self.warnings else ["", "No warnings."]
        return "\n".join(lines) + "\n"

    def to_rich(self) -> Any:
        """A `rich.table.Table` of the rows. Needs rich."""
        from rich.table import Table

        table = Table(*_HEADER)
        marked = {warning.layer for warning in self.warnings}
        for row in self.rows:
            table.add_row(*_cells(row), style="yellow" if row.layer in marked else None)
        return table

    def to_wandb(self) -> Any:
        """A `wandb.Table` of the rows. Needs wandb."""
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
