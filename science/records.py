"""Finished runs as rows of a CSV file, from which an interrupted reproduction continues."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Record(NamedTuple):
    """One finished run.

    Attributes:
        cell: cell of the plan.
        seed: seed of the run.
        settings: hash of everything the run depends on except the seed and the code.
        claims: hash of the claims at the time of the run; "" in records from before claims were stored.
        commit: commit that contains these claims.
        seconds: wall-clock time.
        cpu_seconds: CPU time of the first rank's process.
        made: versions and date.
        metrics: metrics by name.
    """

    cell: str
    seed: int
    settings: str
    claims: str
    commit: str
    seconds: float
    cpu_seconds: float
    made: str
    metrics: Mapping[str, float]


_FIXED = Record._fields[:-1]


class Records:
    """Records in the file `path`, with a column for each of `metrics`.

    Rows whose cell isn't in `settings`, or has a different hash there, are ignored, and dropped from the file when a
    row is added. So are rows from before claims were stored, if `claims` is given. Without `settings` all rows are
    read; use this only for reading.

    Raises:
        ValueError: rows of these settings were made for claims other than `claims`.
    """

    def __init__(
        self, path: Path, metrics: Iterable[str], settings: Mapping[str, str] | None = None, claims: str | None = None
    ) -> None:
        self.path = path
        self.metrics = list(metrics)
        self.rows = _read(path, self.metrics)
        if settings is not None:
            self.rows = [row for row in self.rows if settings.get(row.cell) == row.settings]
        if claims is not None:
            self.rows = [row for row in self.rows if row.claims]
            if any(row.claims != claims for row in self.rows):
                raise ValueError(
                    f"{path}: its runs were made to judge other claims, or on other seeds, than the plan has now: put "
                    "the plan back, or delete the file and do the runs anew"
                )
        self._whole = False

    def has(self, cell: str, seed: int) -> bool:
        """Whether the run is finished."""
        return any((row.cell, row.seed) == (cell, seed) for row in self.rows)

    def values(self, cell: str, metric: str) -> dict[int, float]:
        """Metric of a cell, by seed."""
        return {row.seed: row.metrics[metric] for row in self.rows if row.cell == cell and metric in row.metrics}

    def add(self, row: Record) -> None:
        """Append one row in a single write: a kill leaves at most one incomplete last row, which isn't read."""
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
            row.claims,
            row.commit,
            f"{row.seconds:.2f}",
            f"{row.cpu_seconds:.2f}",
            row.made,
            *measured,
        ]


def _read(path: Path, metrics: list[str]) -> list[Record]:
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # an incomplete row was being written when the process was killed
    rows = []
    for row in csv.DictReader(io.StringIO(whole)):
        measured = {name: float(row[name]) for name in metrics if row.get(name)}
        rows.append(
            Record(
                row["cell"],
                int(row["seed"]),
                row["settings"],
                row.get("claims") or "",
                row.get("commit") or "",
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
