"""Finished runs as rows of a CSV file, so that a stopped reproduction goes on."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Record(NamedTuple):
    """One finished run: its cell, seed and the hash of its settings, what it took, when and by what, and its metrics.

    `seconds` are of the clock, `cpu_seconds` of the first rank's process.
    """

    cell: str
    seed: int
    settings: str
    seconds: float
    cpu_seconds: float
    made: str
    metrics: Mapping[str, float]


_FIXED = Record._fields[:-1]


class Records:
    """The file `path`, with a column for each of `metrics`.

    Rows whose cell isn't in `settings`, or has another hash there, are of other settings: they are left out here, and
    dropped from the file when a row is added. Without `settings` the rows are taken as they are, to be read alone.
    """

    def __init__(self, path: Path, metrics: Iterable[str], settings: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.metrics = list(metrics)
        rows = _read(path, self.metrics)
        self.rows = rows if settings is None else [row for row in rows if settings.get(row.cell) == row.settings]
        self._whole = False

    def has(self, cell: str, seed: int) -> bool:
        """Whether the run is finished."""
        return any((row.cell, row.seed) == (cell, seed) for row in self.rows)

    def values(self, cell: str, metric: str) -> dict[int, float]:
        """A metric of a cell, by seed."""
        return {row.seed: row.metrics[metric] for row in self.rows if row.cell == cell and metric in row.metrics}

    def add(self, row: Record) -> None:
        """Append one row, by one write: what a kill leaves is rows, and at most a last one that isn't read."""
        if not self._whole:
            self._rewrite()
        self.rows.append(row)
        with self.path.open("ab", buffering=0) as file:
            file.write(_csv_row(self._fields_of(row)))
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.tmp")
        beside.write_bytes(
            b"".join(_csv_row(row) for row in [[*_FIXED, *self.metrics], *map(self._fields_of, self.rows)])
        )
        os.replace(beside, self.path)
        self._whole = True

    def _fields_of(self, row: Record) -> list[str]:
        measured = [f"{row.metrics[name]:.8g}" if name in row.metrics else "" for name in self.metrics]
        return [
            row.cell,
            str(row.seed),
            row.settings,
            f"{row.seconds:.2f}",
            f"{row.cpu_seconds:.2f}",
            row.made,
            *measured,
        ]


def _read(path: Path, metrics: list[str]) -> list[Record]:
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # a row without its end was being written when the process was killed
    rows = []
    for row in csv.DictReader(io.StringIO(whole)):
        measured = {name: float(row[name]) for name in metrics if row.get(name)}
        rows.append(
            Record(
                row["cell"],
                int(row["seed"]),
                row["settings"],
                float(row["seconds"]),
                float(row["cpu_seconds"]),
                row["made"],
                measured,
            )
        )
    return rows


def _csv_row(values: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
