"""Streamed data sets, divided over the ranks."""

import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from syncbn.data.base import Part
from syncbn.data.image_splits import splits_of_parts

Sample = dict[str, Any]


class ImageStreams:
    """Parts of a streamed data set.

    A rank reads its own shards where they divide evenly, otherwise every W-th sample of all. A validation part held out
    of "train" is chosen by image content, so it doesn't depend on the order.

    Args:
        splits: streams by name.
        test_split: split to test on; see `splits_of_parts`.
        image_column: column with the image.
        val_fraction: share that is held out, where there is no validation split.
    """

    def __init__(self, splits: Any, test_split: str | None, image_column: str, val_fraction: float) -> None:
        self.splits = splits
        self.names = splits_of_parts(splits, test_split)
        self.is_held_out = partial(_is_held_out, image_column=image_column, share=val_fraction)
        self.held_out_share = val_fraction if self.names["val"] == "train" else 0.0

    def once(self, part: Part, rank: int, world_size: int) -> Any:
        """Samples of a part for one rank, in order."""
        return _share(self._part(part), rank, world_size)

    def train(self, epoch: int, rank: int, world_size: int, seed: int, buffer: int) -> Iterator[Sample]:
        """Endless training samples for one rank, shuffled for the epoch; repeats from the start.

        Raises:
            ValueError: this rank has no samples.
        """
        stream = _share(self._part("train").shuffle(seed=seed, buffer_size=buffer), rank, world_size)
        stream.set_epoch(epoch)
        while True:
            sample = None
            for sample in stream:
                yield sample
            if sample is None:
                raise ValueError(f"rank {rank} of {world_size} has no samples: use fewer, or data.streaming=false")

    def num_train(self, given: int | None) -> int:
        """Number of training samples without those held out, as given or as recorded in the data set.

        Raises:
            ValueError: the data set doesn't record it.
        """
        sizes = self.splits["train"].info.splits or {}
        count = given or ("train" in sizes and sizes["train"].num_examples)
        if not count:
            raise ValueError("the data set doesn't say how many samples it has: set data.num_train to their number")
        return int(count * (1 - self.held_out_share))

    def _part(self, part: Part) -> Any:
        stream = self.splits[self.names[part]]
        if part == "test" or not self.held_out_share:
            return stream
        wanted = self.is_held_out if part == "val" else lambda sample: not self.is_held_out(sample)
        return stream.filter(wanted)


def _share(stream: Any, rank: int, world_size: int) -> Any:
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(stream, rank=rank, world_size=world_size)


def _is_held_out(sample: Sample, image_column: str, share: float) -> bool:
    image = sample[image_column]
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return zlib.crc32(content) < share * 2**32
