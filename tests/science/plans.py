"""A small plan and records for it, for tests."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from science.plan import Plan, read_plan
from science.records import Record, Records

SMALL = {
    "title": "Rates",
    "claim": "fast is worse",
    "source": "nobody",
    "figure": "1 → 2",
    "setting": "an MLP",
    "differs": "everything",
    "budget_minutes": 1,
    "grids": {
        "mlp": {
            "title": "An MLP",
            "overrides": ["experiment=mlp_digits", "model.hidden_size=8", "norm=batch", "trainer.max_epochs=1"],
            "smoke": ["trainer.limit_train_batches=2"],
            "metrics": {"test/acc": {"title": "accuracy, %", "scale": 100}},
            "axes": {"lr": {"0.1": ["optimizer.lr=0.1"], "1": ["optimizer.lr=1"], "2": ["optimizer.lr=2"]}},
        }
    },
    "claims": [
        {
            "text": "slow is better",
            "left": {"cell": "mlp/0.1", "metric": "test/acc"},
            "relation": ">",
            "right": {"cell": "mlp/1", "metric": "test/acc"},
            "margin": 0.05,
        }
    ],
    "headline": {"metric": "test/acc", "series": {"MLP": ["mlp/0.1", "mlp/1"]}, "ticks": ["slow", "fast"]},
}


def write_plan(path: Path, changes: Mapping[str, object] | None = None) -> Plan:
    """`SMALL` with other values for dotted keys, in a file and read back."""
    config = OmegaConf.create(SMALL)
    for key, value in (changes or {}).items():
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, path)
    return read_plan(path)


def records(
    path: Path, values: Mapping[str, list[float]], metric: str = "test/acc", claims: str = "", commit: str = ""
) -> Records:
    """Records of runs with these values of one metric, by cell and seed."""
    made = Records(path, [metric], dict.fromkeys(values, "hash"))
    for cell, found in values.items():
        for seed, value in enumerate(found):
            made.add(Record(cell, seed, "hash", claims, commit, 1.0, 0.5, "today", {metric: value}))
    return made
