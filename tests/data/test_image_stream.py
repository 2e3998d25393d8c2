"""Streamed images from local files: each rank's samples, their order, and resuming."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from syncbn.data import ImageDataModule
from syncbn.data.image_stream import ImageStreams
from tests.data.image_files import write_images
from tests.ranks import Ranks
from tests.training import fits

PLAIN = {"mean": 0.0, "std": 1.0, "num_workers": 0, "image_size": 8, "streaming": True, "flip": False, "min_crop": 1.0}


@pytest.fixture(autouse=True)
def _without_long_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the 5 s that `datasets` sleeps at the end of a stream over Parquet files, to let threads end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 images for training, 18 for the test: one shard each."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images as a hub data set: Parquet files of 4, 5, 4 and 5 images, and a test split of 3."""
    place = tmp_path_factory.mktemp("shards")
    rows = list(datasets.load_dataset("imagefolder", data_dir=str(folder), streaming=True)["train"])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    for number, (start, stop) in enumerate([(0, 4), (4, 9), (9, 13), (13, 18)]):
        part = datasets.Dataset.from_list(rows[start:stop], features=features)
        part.to_parquet(place / f"train-{number}.parquet")
    datasets.Dataset.from_list(rows[:3], features=features).to_parquet(place / "test-0.parquet")
    return place


def streams(path: Path, val_fraction: float = 0.3, **given: Any) -> ImageStreams:
    splits = datasets.load_dataset(str(path), streaming=True)
    return ImageStreams(
        splits.cast_column("image", datasets.Image(decode=False)), given.get("test_split"), "image", val_fraction
    )


def names(samples: Any, count: int | None = None) -> list[tuple[int, str]]:
    """Label and file name of each sample."""
    found = []
    for sample in samples:
        found.append((sample["label"], Path(sample["image"]["path"]).name))
        if len(found) == count:
            break
    return found


def chained(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_every_sample_once(folder: Path, world_size: int) -> None:
    found = streams(folder)
    tested = [names(found.once("test", rank, world_size)) for rank in range(world_size)]
    assert sorted(chained(tested)) == sorted((label, f"{i}.png") for label in range(3) for i in range(6))

    validated = chained(names(found.once("val", rank, world_size)) for rank in range(world_size))
    kept = 18 - len(validated)
    assert 0 < kept < 18
    if kept % world_size == 0:
        share = kept // world_size
        trained = [names(found.train(4, rank, world_size, seed=1, buffer=5), share) for rank in range(world_size)]
        assert sorted(chained(trained) + validated) == sorted(chained(tested))


def test_the_order_is_a_function_of_seed_and_epoch(shards: Path) -> None:
    def order(epoch: int, seed: int) -> list[tuple[int, str]]:
        return names(streams(shards).train(epoch, 0, 1, seed=seed, buffer=3), 9)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(epoch, seed)) for epoch, seed in [(0, 0), (1, 0), (0, 1)]}) == 3


def test_a_rank_reads_shards_of_its_own_and_begins_them_again(shards: Path) -> None:
    """Four shards on four ranks: 4, 5, 4 and 5 images, of which a rank of 4 sees its first one twice in 5."""
    found = streams(shards, val_fraction=1e-9)
    read = [names(found.train(0, rank, 4, seed=0, buffer=1), 5) for rank in range(4)]
    assert sorted(len(set(of_rank)) for of_rank in read) == [4, 4, 5, 5]
    assert Counter(len({of_rank[4]} & set(of_rank[:4])) for of_rank in read) == {1: 2, 0: 2}
    assert len(set(chained(read))) == 18


def test_a_held_out_image_is_never_trained_on(shards: Path) -> None:
    held_out = set(names(streams(shards).once("val", 0, 1)))
    assert held_out
    for epoch in range(3):
        for rank in range(2):
            trained = names(streams(shards).train(epoch, rank, 2, seed=epoch, buffer=4), 12)
            assert not held_out & set(trained)


def test_a_number_of_samples_is_the_data_sets_or_given(folder: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match=r"how many samples it has: set data\.num_train"):
        streams(folder).num_train(None)
    assert streams(folder).num_train(18) == 12
    with_sizes = streams(shards, val_fraction=0.5)
    split = datasets.SplitDict({"train": datasets.SplitInfo(name="train", num_examples=18)})
    with_sizes.splits["train"].info.splits = split  # as a data set of the hub says in its card
    assert with_sizes.num_train(None) == 9


def module(path: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule(source=str(path), **{**PLAIN, "num_train": 18, "shuffle_buffer": 5, **options})


def epoch_of(data: ImageDataModule, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_threads_change_nothing(shards: Path) -> None:
    alone = epoch_of(module(shards, batch_size=2), 3)
    assert len(alone) == 8  # 16 of 18, without the tenth that is held out
    assert_same(alone, epoch_of(module(shards, batch_size=2, num_workers=3), 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_it_was_saved(shards: Path, num_workers: int) -> None:
    whole = epoch_of(module(shards, batch_size=2), 1)
    interrupted = module(shards, batch_size=2, num_workers=num_workers)
    loader = interrupted.train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    seen = [next(batches) for _ in range(3)]
    del batches  # while threads are ahead of it

    resumed = module(shards, batch_size=2, num_workers=num_workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert_same(whole, seen + epoch_of(resumed, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_is_named(tmp_path: Path, num_workers: int) -> None:
    folder = write_images(tmp_path / "damaged", count=2)
    broken = folder / "test" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"can't read the image {broken}"):
        list(module(folder, num_workers=num_workers).test_dataloader())
    skipping = module(folder, num_workers=num_workers, on_corrupt="skip")
    with pytest.warns(UserWarning, match=f"left out an image that can't be read: {broken}"):
        assert sum(len(labels) for _, labels in skipping.test_dataloader()) == 5


def fit_and_test(path: Path, cache: Path) -> dict[str, Any]:
    datasets.config.HF_DATASETS_CACHE = cache
    with fits.launched():
        task, run = fits.task(lr=0.1), fits.trainer(max_epochs=2)
        data = module(path, batch_size=2, eval_batch_size=2, in_channels=1, num_classes=10)
        run.fit(task, data)
        tested = run.test(task, data, verbose=False)[0]
        metrics = {name: float(value) for name, value in {**run.callback_metrics, **tested}.items()}
        seen = int(task.test_confusion.update_count)
        return {"steps": run.global_step, "metrics": metrics, "net": fits.state(task.net), "batches": seen}


@pytest.mark.distributed
def test_two_ranks_train_and_evaluate(ranks: Callable[[int], Ranks], shards: Path, tmp_path: Path) -> None:
    """The test's three samples are two of rank 0 and one of rank 1, so that the ranks' loaders differ in length."""
    first, second = ranks(2).run(fit_and_test, shards, tmp_path)
    assert first["steps"] == second["steps"] == 2 * (16 // 4)
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["test/acc"] * 3 == pytest.approx(round(first["metrics"]["test/acc"] * 3), abs=1e-5)
    for key, value in first["net"].items():
        assert torch.equal(value, second["net"][key]), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_by_class": True}, "shard_by_class needs to know all labels before: set data.streaming=false"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
        ({"test_split": "nowhere"}, "expected splits 'train' and 'nowhere', got .*test"),
        ({"batch_size": 17}, r"a batch of 17 on each of 1 rank\(s\) is more than the 16 samples"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(shards, **options).train_dataloader()
