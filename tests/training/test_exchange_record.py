"""A run's exchange is recorded in its folder, and resuming with another one warns."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from syncbn.training import ExchangeRecord
from tests.norm.core.shared import asked_for
from tests.ranks import Ranks
from tests.training import fits


def fit_and_resume(folder: Path, choices: list[str], norm: str = "sync") -> tuple[str, list[str]]:
    """An epoch by each exchange, each resumed from the last; returns the record and the messages about exchanges."""
    said: list[str] = []
    for epoch, choice in enumerate(choices):
        with asked_for(choice), fits.launched(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = fits.trainer(max_epochs=epoch + 1, callbacks=[ExchangeRecord()], default_root_dir=folder)
            data = fits.digits(train=32, test=8, batch_size=8, eval_batch_size=8)
            run.fit(fits.task(norm), data, ckpt_path=folder / "last.ckpt" if epoch else None)
            run.save_checkpoint(folder / "last.ckpt")
        said += [str(warning.message) for warning in caught if "ranks sum by" in str(warning.message)]
    record = folder / "exchange.csv"
    return record.read_text() if record.exists() else "", said


@pytest.mark.distributed
def test_a_resume_with_another_exchange_says_so_in_one_line(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    choices = ["one_shot", "one_shot", "collective"]
    (record, said), (_, quiet) = ranks(2).run(fit_and_resume, tmp_path, choices)
    assert record == "step,exchange\n1,one_shot\n3,one_shot\n5,collective\n"
    assert len(said) == 1
    assert said[0].startswith("ranks sum by collective here, and by one_shot before the checkpoint")
    assert "\n" not in said[0]
    assert quiet == []


def test_one_rank_has_nothing_to_record(tmp_path: Path) -> None:
    assert fit_and_resume(tmp_path, ["", ""]) == ("", [])
