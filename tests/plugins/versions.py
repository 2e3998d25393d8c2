"""The table of docs/versions.md: `make test TORCH=2.11.0` adds a row with pytest's counts.

As a plugin (`-p tests.plugins.versions --row docs/versions.csv`) it counts; `python -m tests.plugins.versions` writes
the page from the rows.
"""

import csv
import importlib.metadata
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from packaging.version import Version

ROWS = Path(__file__).parents[2] / "docs" / "versions.csv"
COLUMNS = ("torch", "python", "lightning", "tests", "passed", "failed", "skipped", "why_skipped", "date")
KEY = COLUMNS[:4]
HEAD = """\
# Versions that the test suite was run with

A row stands for a run of the tests it names, made by `make test TORCH=<version>` (or `LIGHTNING=<version>`,
`PYTHON=<python>`), which builds an environment of its own. A version without a row was never tried. Nothing keeps pip
from installing syncbn beside it: what a version of torch lacks is looked for when it is needed, and refused by name.
A failure stays in its row until the same tests are run again; a row of fewer tests beside it shows what was mended.

| torch | Python | Lightning | tests | passed | failed | skipped | date |
|---|---|---|---|--:|--:|---|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--row`."""
    parser.addoption("--row", type=Path, help="add a row of counts to this CSV file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the row once all counts are known."""
    path: Path | None = config.getoption("--row")
    if path is None:
        return
    stats = terminalreporter.stats
    reasons = Counter(_reason(report) for report in stats.get("skipped", []))
    row = {
        "torch": importlib.metadata.version("torch").partition("+")[0],
        "python": platform.python_version(),
        "lightning": importlib.metadata.version("lightning"),
        "tests": " ".join(config.args) if config.args != config.getini("testpaths") else "all",
        "passed": str(len(stats.get("passed", []))),
        "failed": str(len(stats.get("failed", [])) + len(stats.get("error", []))),
        "skipped": str(sum(reasons.values())),
        "why_skipped": "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items())),
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_row(path, row)
    terminalreporter.write_line(f"row added to {path}: {row}")


def write_row(path: Path, row: dict[str, str]) -> None:
    """Write a row to a file, replacing an older one of the same versions and tests."""
    rows = [old for old in read_rows(path) if any(old[key] != row[key] for key in KEY)]
    rows = sorted([*rows, row], key=lambda row: [Version(row[key]) for key in KEY[:3]])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file; empty if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def page(rows: list[dict[str, str]]) -> str:
    """Format docs/versions.md, newest torch first."""
    lines = []
    for row in reversed(rows):
        skipped = f"{row['skipped']} ({row['why_skipped']})" if row["why_skipped"] else row["skipped"]
        cells = [*(row[key] for key in COLUMNS[:6]), skipped, row["date"]]
        lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def _reason(report: object) -> str:
    longrepr = getattr(report, "longrepr", None)
    text = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ").replace("|", "/")


if __name__ == "__main__":
    ROWS.with_suffix(".md").write_text(page(read_rows(ROWS)))
