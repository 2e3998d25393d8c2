"""Images from folders or the Hugging Face hub, decoded by workers and augmented on the device."""

from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from syncbn.data.base import GlobalBatchDataModule, Part
from syncbn.data.decoding import decode
from syncbn.data.image_splits import INSTALL, load_splits, splits_of_parts
from syncbn.data.image_stream import ImageStreams
from syncbn.data.images_options import ImagesOptions as Options
from syncbn.data.loader import BatchLoader
from syncbn.data.stream import StreamLoader
from syncbn.norm.core.arguments import check_arguments


class ImageDataModule(GlobalBatchDataModule):
    """Images (N, in_channels, image_size, image_size) float32, normalized, and labels (N) int64.

    The shorter side is resized to image_size and the longer one cropped about the center. In training, kornia flips and
    crops whole batches on the device, as a function of (seed, step, rank) that depends on neither workers nor restarts.
    Loaders used without a trainer, as in recalibration, give the images unaugmented. The data is loaded on first use.

    Splits: training uses "train"; testing uses "test" or, where there is none, "validation"; validation uses
    "validation" or, where that is the test split, a part of "train" chosen by `split_seed` (in a stream by content).

    With `streaming`, samples are read on demand and nothing is kept on disk. A rank reads its own shards where their
    number is a multiple of the number of ranks; otherwise every rank reads all and takes every W-th sample. Shards are
    shuffled, then samples in a buffer of `shuffle_buffer`. A training epoch is num_train // (batch_size·W) full batches
    on every rank; a rank whose shards end earlier starts them again. Evaluation takes each sample once. A resumed run
    rereads the samples before its position, without decoding them.

    Args:
        source: a data set of the Hugging Face hub, or a folder of data files in one of its formats; or use `folder`.
        folder: a folder with train/<class>/*.png, test/<class>/*.png and so on; or use `source`.
        batch_size: training samples of one rank in a step.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: seed of sample order and augmentation.
        split_seed: seed of a validation part taken from the training data.
        val_fraction: size of that part.
        image_size: height and width in pixels.
        in_channels: 1 (grey) or 3.
        num_classes: number of classes; None to take it from the data.
        image_column: column with the image.
        label_column: column with the label.
        mean: mean subtracted from each channel of images in [0, 1].
        std: standard deviation that each channel is then divided by.
        flip: mirror training images left to right with probability 1/2.
        min_crop: smallest share of an image's area in a random crop; 1 for no crop.
        on_corrupt: "raise" for an image that can't be read, or "skip" it with a warning; both name the image.
        num_workers: decoding processes of each rank, threads for a stream; 0 for none.
        drop_last: leave out the last training batch of an epoch when it isn't full; a stream has none.
        shard_by_class: each rank trains only on its own classes; not for streams.
        test_split: split to test on, where it isn't the one above.
        streaming: read samples on demand.
        shuffle_buffer: size of a stream's shuffle buffer, in samples.
        num_train: number of training samples of a stream, where the data set doesn't record it.

    Raises:
        ValueError: both or neither of source and folder; a folder that doesn't exist; a source that can't be reached; a
            number out of range; an unknown split; a stream without a size or with shard_by_class; a corrupt image with
            on_corrupt="raise".
        ModuleNotFoundError: `datasets` or `kornia` is missing.
    """

    def __init__(
        self,
        source: str | None = Options.source,
        folder: str | None = Options.folder,
        batch_size: int = Options.batch_size,
        eval_batch_size: int = Options.eval_batch_size,
        seed: int = Options.seed,
        split_seed: int = Options.split_seed,
        val_fraction: float = Options.val_fraction,
        image_size: int = Options.image_size,
        in_channels: int = Options.in_channels,
        num_classes: int | None = Options.num_classes,
        image_column: str = Options.image_column,
        label_column: str = Options.label_column,
        mean: float | list[float] = Options.mean,
        std: float | list[float] = Options.std,
        flip: bool = Options.flip,
        min_crop: float = Options.min_crop,
        on_corrupt: Literal["raise", "skip"] = Options.on_corrupt,
        num_workers: int = Options.num_workers,
        drop_last: bool = Options.drop_last,
        shard_by_class: bool = Options.shard_by_class,
        test_split: str | None = Options.test_split,
        streaming: bool = Options.streaming,
        shuffle_buffer: int = Options.shuffle_buffer,
        num_train: int | None = Options.num_train,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last, shard_by_class)
        if (source is None) == (folder is None):
            raise ValueError(
                f"give either source or folder (data.folder=<path>), got source={source!r} and folder={folder!r}"
            )
        check_arguments(Options, locals())
        if streaming and shard_by_class:
            raise ValueError("shard_by_class needs to know all labels before: set data.streaming=false")
        self.source = source
        self.folder = folder
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.in_channels = in_channels
        self.image_size = (image_size, image_size)
        self.image_column = image_column
        self.label_column = label_column
        self.mean = torch.tensor(mean, dtype=torch.float32).expand(in_channels).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).expand(in_channels).view(-1, 1, 1)
        self.flip = flip
        self.min_crop = min_crop
        self.on_corrupt = on_corrupt
        self.num_workers = num_workers
        self.test_split = test_split
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.num_train = num_train
        if num_classes is None:
            self.class_names = tuple(self._splits["train"].features[label_column].names)
        else:
            self.class_names = tuple(str(i) for i in range(num_classes))
        self.num_classes = len(self.class_names)

    def num_samples(self, part: Part) -> int:
        """Number of images in a part; unknown for streams."""
        return len(self._parts[part][1])

    def train_classes(self) -> np.ndarray:
        """Class of each training image."""
        split, rows = self._parts["train"]
        return np.asarray(split[self.label_column])[rows]

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a part, normalized."""
        split, rows = self._parts[part]
        chosen = rows[indices].tolist()
        return self._batch([(f"{part} image {row}", split[row]) for row in chosen])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch on its device."""
        if self.trainer is None or not self.trainer.training:
            return batch
        # Lightning also sends other things through here: a network's example input, for a summary.
        if not isinstance(batch, list | tuple) or len(batch) != 2 or len(batch[1]) == 0:
            return batch
        images, labels = batch
        step = self.trainer.fit_loop.total_batch_idx + 1  # this batch isn't counted yet
        with torch.random.fork_rng(devices=[]):  # kornia draws on the CPU, whatever the device
            torch.manual_seed(int(np.random.default_rng([self.seed, step, self._rank]).integers(2**62)))
            return self._augmentation(images), labels

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this rank, decoded by workers."""
        loader = self._resumed(self._train_stream()) if self.streaming else super().train_dataloader()
        loader.num_workers = self.num_workers
        return loader

    def _train_stream(self) -> StreamLoader:
        global_batch_size, size = self.batch_size * self._world_size, self._streams.num_train(self.num_train)
        if global_batch_size > size:
            raise ValueError(
                f"a batch of {self.batch_size} on each of {self._world_size} rank(s) is more than the {size} samples"
            )
        options = {"rank": self._rank, "world_size": self._world_size, "seed": self.seed, "buffer": self.shuffle_buffer}
        stream = partial(self._streams.train, **options)
        return StreamLoader(stream, partial(self._streamed, "train"), self.batch_size, size // global_batch_size)

    def _eval_loader(self, part: Part) -> BatchLoader:
        if self.streaming:
            stream = self._streams.once(part, self._rank, self._world_size)
            loader: BatchLoader = StreamLoader(lambda _: stream, partial(self._streamed, part), self.eval_batch_size)
        else:
            loader = super()._eval_loader(part)
        loader.num_workers = self.num_workers
        return loader

    def _streamed(self, part: Part, samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        return self._batch(
            [(f"a {part} image with the label {sample[self.label_column]}", sample) for sample in samples]
        )

    def _batch(self, samples: list[tuple[str, dict[str, Any]]]) -> tuple[Tensor, Tensor]:
        """Collate images and labels of (place, sample) pairs, without skipped images."""
        images, labels = [], []
        for place, sample in samples:
            image = decode(sample[self.image_column], place, self.in_channels, self.image_size, self.on_corrupt)
            if image is not None:
                images.append(image)
                labels.append(int(sample[self.label_column]))
        if not images:
            return torch.empty(0, self.in_channels, *self.image_size), torch.empty(0, dtype=torch.long)
        return (torch.stack(images).float() / 255 - self.mean) / self.std, torch.tensor(labels)

    @cached_property
    def _augmentation(self) -> torch.nn.Module:
        try:
            import kornia.augmentation as K
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(INSTALL) from error
        steps: list[torch.nn.Module] = []
        if self.flip:
            steps.append(K.RandomHorizontalFlip(p=0.5))
        if self.min_crop < 1:
            steps.append(K.RandomResizedCrop(self.image_size, scale=(self.min_crop, 1.0)))
        return torch.nn.Sequential(*steps)

    @cached_property
    def _splits(self) -> Any:
        return load_splits(self.source, self.folder, self.image_column, self.streaming)

    @cached_property
    def _streams(self) -> ImageStreams:
        return ImageStreams(self._splits, self.test_split, self.image_column, self.val_fraction)

    @cached_property
    def _parts(self) -> dict[Part, tuple[Any, np.ndarray]]:
        """Split and row indices of each part."""
        names = splits_of_parts(self._splits, self.test_split)
        rows = {part: np.arange(len(self._splits[name])) for part, name in names.items()}
        if names["val"] == "train":
            order = np.random.default_rng(self.split_seed).permutation(rows["train"])
            held_out = max(1, round(self.val_fraction * len(order)))
            rows["train"], rows["val"] = order[held_out:], order[:held_out]
        return {part: (self._splits[names[part]], rows[part]) for part in names}
