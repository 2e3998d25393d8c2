"""Each result in its smoke size, from its configs to its page, on real ranks where ranks matter."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from science.command import reproduce
from science.plan import SMOKE_SEEDS, available_results, load_plan
from science.records import Records
from science.runs import carry_out, missing_trials, settings_of
from syncbn.launch.world import World
from tests.data.fashion_mnist import needs_fashion_mnist
from tests.ranks import Ranks
from tests.science.plans import write_plan
from tests.training import fits

ALONE = World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


def smoke(name: str, folder: Path) -> str:
    """Do `scripts/reproduce.py <name> smoke=true` in this process or as one of its ranks."""
    with fits.launched():
        os.environ["SYNCBN_RUN_ID"] = "smoke"
        world = ALONE
        if dist.is_initialized():
            rank, size = dist.get_rank(), dist.get_world_size()
            world = World("torchrun", rank, rank, size, size, num_nodes=1)
        return str(reproduce(name, folder, world, "smoke"))


def real_images(name: str) -> bool:
    """Whether a plan trains on Fashion-MNIST, which isn't everywhere."""
    return any("_fashion" in override for cell in load_plan(name).cells() for override in cell.overrides)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_fashion_mnist if real_images(name) else ()) for name in available_results()],
)
def test_it_runs_and_writes_its_page(ranks: Callable[[int], Ranks], name: str, tmp_path: Path) -> None:
    plan = load_plan(name)
    count = plan.ranks_of("smoke")
    page = Path(smoke(name, tmp_path) if count == 1 else ranks(count).run(smoke, name, tmp_path)[0])
    pictures = {file.name for file in tmp_path.glob(f"{name}-*.png")}
    assert {file.name for file in tmp_path.iterdir()} - pictures == {f"{name}.md", f"{name}.png", f"{name}.csv"}
    assert all(f"({picture})" in page.read_text() for picture in pictures)
    assert len(pictures) == sum(plan.grids[cell.grid].measure == "samples" for cell in plan.cells("smoke"))
    rows = page.with_suffix(".csv").read_text().splitlines()[1:]
    assert len(rows) == SMOKE_SEEDS * len(plan.cells("smoke"))
    assert "Its figures mean nothing" in page.read_text()


def test_a_stopped_reproduction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    path, plan = tmp_path / "small.csv", write_plan(tmp_path / "small.yaml")
    settings = settings_of(plan, "smoke")
    records = Records(path, plan.metrics(), settings)
    runs = missing_trials(plan, records, "smoke")
    assert len(runs) == 2, "the cells of the claim"
    with fits.launched():
        stopped = carry_out(plan, runs, records, settings, ALONE)
        next(stopped)
        stopped.close()
        before = path.read_text()
        assert before.count("\n") == 2

        records = Records(path, plan.metrics(), settings)
        rest = missing_trials(plan, records, "smoke")
        assert rest == runs[1:]
        assert [run for run, _ in carry_out(plan, rest, records, settings, ALONE)] == rest
    assert path.read_text().startswith(before)

    changed = write_plan(tmp_path / "small.yaml", {"grids.mlp.overrides.1": "model.hidden_size=16"})
    records = Records(path, plan.metrics(), settings_of(changed, "smoke"))
    assert len(missing_trials(changed, records, "smoke")) == 2


def test_the_same_run_gives_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    plan = write_plan(tmp_path / "small.yaml")
    found = []
    for name in ("a", "b"):
        settings = settings_of(plan, "smoke")
        records = Records(tmp_path / f"{name}.csv", plan.metrics(), settings)
        with fits.launched():
            list(carry_out(plan, missing_trials(plan, records, "smoke")[:2], records, settings, ALONE))
        found.append([(row.cell, row.seed, row.metrics) for row in records.rows])
    assert found[0] == found[1]
