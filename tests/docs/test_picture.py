"""The programs that draw the README's pictures: the first on two digits, where its caption holds too."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.markdown import REPOSITORY
from tests.ranks import Ranks
from tests.run.here import train as run_here

NORMS = ("batch", "batch_renorm")


def picture(name: str = "one_class_per_rank") -> ModuleType:
    path = REPOSITORY / "docs" / "images" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(norm: str, data: tuple[Any, ...], average: bool = False) -> tuple[Any, ...]:
    module = picture()
    return tuple(module.train(norm, module.Digits(*data), steps=4, every=2, average=average))


@pytest.mark.distributed
def test_synchronized_ranks_are_one_process_and_others_are_not(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    module = picture()
    data = tuple(module.load(classes=2))
    one_process = module.Curve(*train("batch", data))
    runs = [ranks(2).run(train, *work)[0] for work in (("sync", data), ("batch", data, True), ("batch", data))]
    synchronized, averaged, of_rank_0 = (module.Curve(*run) for run in runs)

    assert max(module.difference(synchronized, one_process)) < 1e-11
    for unsynchronized in (averaged, of_rank_0):
        assert min(module.difference(unsynchronized, one_process)) > 1e-2
    module.draw([one_process, synchronized, averaged, of_rank_0], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:.slow-momentum")  # after three steps
@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
def test_the_dashboard_is_drawn_from_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = picture("dashboard")
    monkeypatch.setattr(module, "PICTURE", tmp_path / "dashboard.png")
    short = [
        "trainer.log_every_n_steps=1",
        "trainer.limit_train_batches=3",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    ]
    runs = [
        run_here(tmp_path, norm, f"norm={norm}", "callbacks=[default,norm_monitor]", *short).folder for norm in NORMS
    ]
    module.main(runs)
    assert module.PICTURE.stat().st_size > 10_000
