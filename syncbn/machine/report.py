"""Findings of `doctor`, as text and as JSON that can be attached to an issue."""

import dataclasses
import getpass
import json
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SHORTEST = 3  # shorter user or host names would match in any text


@dataclass(frozen=True)
class Finding:
    """One case of the proof.

    Attributes:
        place: device and process group.
        name: name of the case.
        error: largest difference from one process in float64, relative to the largest expected value; None if the case
            didn't run.
        tolerance: largest error that rounding explains.
        seconds: duration.
        problem: what is wrong; empty if nothing is.
        skipped: why the case didn't run; empty if it did.
    """

    place: str
    name: str
    error: float | None
    tolerance: float
    seconds: float
    problem: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Timing:
    """Median time of one operation on this machine, in milliseconds."""

    place: str
    name: str
    milliseconds: float


@dataclass
class DoctorReport:
    """Result of `syncbn.doctor`.

    Attributes:
        versions: versions of Python and relevant packages; None for one that isn't installed.
        devices: CPUs and GPUs.
        kernels: for each device, the kernels that serve a float32 tensor, and why not faster ones.
        exchange: for each place, the exchange that sums over ranks, and why not another.
        proof: cases compared with one process in float64.
        times: times of messages and layers.
        forecast: cost of synchronization for a model, if one was named.
    """

    versions: dict[str, str | None]
    devices: list[str]
    kernels: dict[str, str]
    exchange: dict[str, str] = field(default_factory=dict)
    proof: list[Finding] = field(default_factory=list)
    times: list[Timing] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether layers were compared, and every case that ran was exact."""
        return any(finding.error is not None for finding in self.proof) and not self.problems

    @property
    def problems(self) -> list[Finding]:
        """Cases with a problem."""
        return [finding for finding in self.proof if finding.problem]

    @property
    def verdict(self) -> str:
        """Summary in one line."""
        ran = [finding for finding in self.proof if finding.error is not None or finding.problem]
        skipped = len(self.proof) - len(ran)
        left = f" ({skipped} skipped)" if skipped else ""
        if not ran:
            return f"nothing was compared here{left}"
        if self.problems:
            first = self.problems[0]
            return f"{len(self.problems)} of {len(ran)} cases are wrong here, first {first.name} on {first.place}: " + (
                first.problem
            )
        return f"exact here: all {len(ran)} cases agree with one process in float64{left}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, without names of hosts, users or folders."""
        found = {"ok": self.ok, "verdict": self.verdict, **dataclasses.asdict(self)}
        return _scrubbed(found)

    def to_json(self) -> str:
        """Convert to JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Convert to a Markdown page of tables."""
        found = self.to_dict()
        lines = [f"**{found['verdict']}**", ""]
        lines += _table(("package", "version"), [(k, v or "not installed") for k, v in found["versions"].items()])
        lines += [f"- {device}" for device in found["devices"]] + [""]
        rows = [(f"kernels, {device}", how) for device, how in found["kernels"].items()]
        rows += [(f"exchange, {place}", how) for place, how in found["exchange"].items()]
        lines += _table(("chosen", "how"), rows)
        lines += _table(
            ("proof, on", "case", "error", "rounding allows", "verdict"),
            [
                (
                    row["place"],
                    row["name"],
                    "" if row["error"] is None else f"{row['error']:.1e}",
                    f"{row['tolerance']:.0e}",
                    f"**{row['problem']}**" if row["problem"] else row["skipped"] or "exact",
                )
                for row in found["proof"]
            ],
        )
        lines += _table(
            ("time, on", "of", "ms"),
            [(row["place"], row["name"], f"{row['milliseconds']:.4g}") for row in found["times"]],
        )
        lines += _table(("forecast", ""), [(key, str(value)) for key, value in found["forecast"].items()])
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_markdown()


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [head, tuple("---" for _ in head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in line)} |" for line in lines] + [""]


def _scrubbed(value: Any) -> Any:
    """Apply `scrub` to all strings in nested values."""
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    return scrub(value) if isinstance(value, str) else value


def scrub(text: str) -> str:
    """Remove absolute paths, and this host's and this user's names, from `text`."""
    text = re.sub(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}/?", lambda path: f"<path>/{Path(path[0]).name}", text)
    for name in {socket.gethostname(), os.environ.get("USER", ""), _user()}:
        if len(name) >= _SHORTEST and name not in ("root", "localhost"):
            text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user in a container may have no entry
        return ""
