"""A slow loader causes a warning, and a fast one doesn't."""

import time
import warnings

import pytest
from torch import Tensor

from syncbn.training import LoaderWatch
from tests.training import fits


class Slow(fits.DigitsDataModule):
    """Sleeps before each training batch."""

    seconds = 0.05

    def fetch(self, part: str, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        if part == "train":
            time.sleep(self.seconds)
        return super().fetch(part, indices, epoch)


def fit(data: fits.DigitsDataModule, **options: float) -> tuple[float | None, list[str]]:
    data.train_indices, data.val_indices = data.train_indices[:64], data.val_indices[:8]
    with fits.launched(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fits.trainer(max_epochs=2, callbacks=[LoaderWatch(**options)])
        run.fit(fits.task(width=2), data)
        share = run.callback_metrics.get("loader/wait_share")
        texts = [str(w.message) for w in caught if "waits for its data" in str(w.message)]
        return (None if share is None else float(share)), texts


def test_a_slow_loader_is_told_once() -> None:
    share, texts = fit(Slow(batch_size=4), max_share=0.05)
    assert share is not None
    assert 0.05 < share < 1
    assert len(texts) == 1
    assert "data.num_workers" in texts[0]


def test_data_in_memory_is_no_bottleneck() -> None:
    share, texts = fit(fits.DigitsDataModule(batch_size=4), max_share=0.9)
    assert share is not None
    assert texts == []


def test_too_few_batches_say_nothing() -> None:
    assert fit(Slow(batch_size=32), max_share=0.1) == (None, [])


@pytest.mark.parametrize(
    ("options", "message"), [({"max_share": 1.0}, "max_share must be above 0"), ({"min_batches": 0}, "min_batches")]
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderWatch(**options)
