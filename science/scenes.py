"""Measurements and tables of docs/results/scenes.md: python -m science.scenes [seeds=3] [option=value ...].

Trains `experiment=fcn_scenes` in one process of 8 images, on 4 ranks of 2 with synchronized statistics, and on 4 ranks
of 2 with each rank's own. Each run adds a line to docs/results/scenes.csv; finished runs aren't repeated. Options are
those of scripts/train.py. The tables are printed at the end.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]
TABLE = _REPOSITORY / "docs" / "results" / "scenes.csv"
TRAIN = str(_REPOSITORY / "scripts" / "train.py")
COLUMNS = ("setting", "seed", "steps", "miou", "acc", "loss")
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", TRAIN, "trainer=ddp"]
SETTINGS = {
    "one process of 8": [sys.executable, TRAIN, "data.batch_size=8"],
    "4 ranks of 2, sync": [*RANKS, "data.batch_size=2", "norm=sync"],
    "4 ranks of 2, batch": [*RANKS, "data.batch_size=2", "norm=batch"],
}


def measure(setting: str, seed: int, options: list[str]) -> dict[str, str]:
    """Train and test once; returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["experiment=fcn_scenes", "trainer.accelerator=cpu", "threads=1", f"output_root={folder}", "run_id=run"]
        subprocess.run([*SETTINGS[setting], *fixed, f"seed={seed}", *options], check=True, stdout=sys.stderr)
        with open(Path(folder, "run", "metrics.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    (tested,) = (row for row in rows if row.get("test/miou"))
    values = {name: f"{float(tested[f'test/{name}']):.4f}" for name in ("miou", "acc", "loss")}
    return {"setting": setting, "seed": str(seed), "steps": tested["step"], **values}


def measured() -> list[dict[str, str]]:
    """Rows of finished runs."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]], metric: str) -> str:
    """Format a metric of each seed and setting, and its mean over seeds, as Markdown."""
    found = {(row["setting"], row["seed"]): float(row[metric]) for row in rows}
    seeds = sorted({seed for _, seed in found}, key=int)
    lines = [f"| seed | {' | '.join(SETTINGS)} |", "|---" + "|--:" * len(SETTINGS) + "|"]
    for seed in seeds:
        cells = (f"{found[name, seed]:.3f}" if (name, seed) in found else "" for name in SETTINGS)
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    means = (statistics.mean([found[name, seed] for seed in seeds if (name, seed) in found]) for name in SETTINGS)
    return "\n".join([*lines, f"| mean | {' | '.join(f'{mean:.3f}' for mean in means)} |"])


def main() -> None:
    seeds = int(next((a.removeprefix("seeds=") for a in sys.argv[1:] if a.startswith("seeds=")), "3"))
    options = [a for a in sys.argv[1:] if not a.startswith("seeds=")]
    for seed in range(seeds):
        for setting in SETTINGS:
            rows = measured()
            if not any((row["setting"], row["seed"]) == (setting, str(seed)) for row in rows):
                rows.append(measure(setting, seed, options))
                with open(TABLE, "w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    for metric in ("miou", "acc", "loss"):
        print(f"{metric}\n\n{table(measured(), metric)}\n")


if __name__ == "__main__":
    main()
