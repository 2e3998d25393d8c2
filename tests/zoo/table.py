"""The table of docs/zoo.md, from the rows of docs/zoo.csv."""

import csv
from collections import Counter
from pathlib import Path

from tests.zoo.checks import CHECKS

ROWS = Path(__file__).parents[2] / "docs" / "zoo.csv"
COLUMNS = ("library", "version", "torch", "name", "norms", "following", "folded", "channels", "removed", *CHECKS)
VERDICTS = ("right", "refused", "wrong", "crashed")

HEAD = """\
# Networks of other packages

`make zoo` builds an environment of its own with torchvision, timm, effdet, segmentation-models-pytorch, monai,
transformers and kornia, puts each network of `tests/zoo/architectures.py` with random weights through every conversion
and policy, and writes this page. What is right is told by comparison with the network itself, in float64: see
`tests/zoo/checks.py`.

"""
LEGEND = """\

**Columns.** Norms: batch norms with running statistics. Folded: by `fuse`, of those that follow a convolution or linear
layer, as hooks on modules count them, without the recorder. Pruned: the part of the norms' channels that `prune` with
ratio 0.3 removes. ✓ is right; a number is a refusal, by its reason below; what was not tried is empty. Plain: converted
to `torch`, from our synchronized norms and from torch's. Verify: two ranks against one process.

"""


def read_rows(path: Path = ROWS) -> list[dict[str, str]]:
    """Read all rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_row(row: dict[str, str], order: list[str], path: Path = ROWS) -> None:
    """Write a row to the file, replacing an older one of the same network; rows of unknown names are dropped."""
    rows = {old["name"]: old for old in read_rows(path)} | {row["name"]: row}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in order if name in rows)


def page(rows: list[dict[str, str]]) -> str:
    """Format the page."""
    reasons: dict[str, int] = {}
    counts = {check: Counter(_verdict(row[check]) for row in rows if row[check]) for check in CHECKS}
    folded, following = (sum(int(row[name] or 0) for row in rows) for name in ("folded", "following"))
    versions = sorted({f"{row['library']} {row['version']}" for row in rows})
    summary = (
        f"{len(rows)} networks, {sum(int(row['norms'] or 0) for row in rows)} norms. `fuse` folds {folded} of the "
        f"{following} norms that follow a convolution or linear layer ({folded / max(following, 1):.1%}); `prune` runs "
        f"on {counts['prune']['right']} of {len(rows)} networks. Made with torch {rows[0]['torch']}; "
        f"{', '.join(versions)}.\n"
    )
    lines = [
        summary,
        "| | " + " | ".join(VERDICTS) + " |",
        "|---|" + "--:|" * len(VERDICTS),
    ]
    lines += [f"| {check} | " + " | ".join(str(counts[check][v]) for v in VERDICTS) + " |" for check in CHECKS]
    lines += [LEGEND, "| network | norms | folded | pruned | " + " | ".join(CHECKS) + " |"]
    lines.append("|---|--:|--:|--:|" + "---|" * len(CHECKS))
    for row in rows:
        pruned = f"{int(row['removed']) / int(row['channels']):.0%}" if int(row["channels"] or 0) else ""
        cells = [row["name"], row["norms"], f"{row['folded']} of {row['following']}", pruned]
        cells += [_cell(row[check], reasons) for check in CHECKS]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "**Reasons**", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return HEAD + "\n".join(lines) + "\n"


def _verdict(cell: str) -> str:
    return cell.partition(":")[0]


def _cell(cell: str, reasons: dict[str, int]) -> str:
    verdict, _, reason = cell.partition(": ")
    if verdict in ("right", ""):
        return "✓" if verdict else ""
    number = reasons.setdefault(reason, len(reasons) + 1)
    return str(number) if verdict == "refused" else f"**{verdict}** {number}"
