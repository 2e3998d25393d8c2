"""Images in folders or on the Hugging Face hub, decoded by workers and augmented on the device."""

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

    An image's shorter side is resized to image_size and the middle of the longer one kept. While a trainer trains,
    kornia flips and crops whole batches at random after their transfer to the device, as a function of (seed, step,
    rank), which neither workers nor a restart change. What asks for a loader without a trainer, as recalibration does,
    gets the images as they are. The data is loaded when the first sample is asked for, or a size that isn't given.

    Splits: "train"; the test is "test" or, where there is none, "validation"; validation is "validation" where that
    isn't the test, and else a part of "train" chosen by `split_seed`, or in a stream by the images' content.

    With `streaming`, samples are read while they are needed, and nothing is kept on disk. A rank reads shards of its
    own, where the number of shards is a multiple of the number of ranks, and else every rank reads all and takes every
    W-th sample. The order is that of the shards, shuffled, through a buffer of `shuffle_buffer` samples. A training
    epoch is num_train // (batch_size·W) full batches on every rank; a rank whose shards end earlier begins them again.
    Evaluation takes each sample once. A run that is resumed reads what it had passed again, without decoding it.

    Args:
        source: a data set of the Hugging Face hub, or a folder of data files in one of its formats, or None.
        folder: a folder train/<class>/*.png, test/<class>/*.png and so on, or None; one of the two.
        batch_size: training samples of one rank in a step.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: of order and augmentation.
        split_seed: of a validation part taken from the training data.
        val_fraction: its size.
        image_size: height and width in pixels.
        in_channels: 1 (grey) or 3.
        num_classes: as given or, where None, as found in the data.
        image_column: of the data set.
        label_column: of the data set.
        mean: subtracted from each channel of images in [0, 1].
        std: what each channel is divided by then.
        flip: mirror every other training image, left to right.
        min_crop: a training image is a random part of the image, of at least this share of its area; 1 for all of it.
        on_corrupt: an image that can't be read is fatal ("raise") or left out of its batch with a warning ("skip");
            both name it.
        num_workers: processes of each rank that decode, threads for a stream; 0 for none.
        drop_last: leave out the last training batch of an epoch when it isn't full; a stream has none.
        shard_by_class: each rank trains on its own classes alone; not for streams.
        test_split: the split to test on, where it isn't the one above.
        streaming: read samples while they are needed.
        shuffle_buffer: samples of a stream, of which the next one is drawn.
        num_train: training samples of a stream, where the data set doesn't say.

    Raises:
        ValueError: not one of source and folder; no such folder; a source that can't be reached; a number out of its
            range; a split that isn't there; a stream without a size or with classes for the ranks; a corrupt image
            with on_corrupt="raise".
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
        """How many images a part has; not known of streams."""
        return len(self._parts[part][1])

    def train_classes(self) -> np.ndarray:
        """The class of each training image."""
        split, rows = self._parts["train"]
        return np.asarray(split[self.label_column])[rows]

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a part, normalized."""
        split, rows = self._parts[part]
        chosen = rows[indices].tolist()
        return self._batch([(f"{part} image {row}", split[row]) for row in chosen])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch, on its device."""
        if self.trainer is None or not self.trainer.training or len(batch[1]) == 0:
            return batch
        images, labels = batch
        step = self.trainer.fit_loop.total_batch_idx + 1  # the batch isn't counted yet
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
        """Images and labels of (place, sample), without those that can't be read."""
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
        """Split and rows of each part."""
        names = splits_of_parts(self._splits, self.test_split)
        rows = {part: np.arange(len(self._splits[name])) for part, name in names.items()}
        if names["val"] == "train":
            order = np.random.default_rng(self.split_seed).permutation(rows["train"])
            held_out = max(1, round(self.val_fraction * len(order)))
            rows["train"], rows["val"] = order[held_out:], order[:held_out]
        return {part: (self._splits[names[part]], rows[part]) for part in names}
