"""Images in folders or on the Hugging Face hub, decoded by workers and augmented batch by batch."""

import io
import warnings
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from syncbn.data.base import GlobalBatchDataModule, Part
from syncbn.data.loader import BatchLoader

INSTALL = 'images need `datasets` and `kornia`: pip install "syncbn[vision]"'
_MODES = {1: "L", 3: "RGB"}


class ImageDataModule(GlobalBatchDataModule):
    """Images (N, in_channels, image_size, image_size) float32, normalized, and labels (N) int64.

    An image's shorter side is resized to image_size and the middle of the longer one kept. Training batches are then
    flipped and cropped at random by kornia, as a function of (seed, epoch, the samples of the batch), which neither
    workers nor a restart change. The data is loaded when the first sample is asked for, or a size that isn't given.

    Splits: "train"; the test is "test" or, where there is none, "validation"; validation is "validation" where there is
    a "test" too, and else a part of "train" chosen by `split_seed`.

    Args:
        source: a data set of the Hugging Face hub, or None.
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
        num_workers: processes of each rank that decode; 0 for none.
        drop_last: leave out the last training batch of an epoch when it isn't full.
        shard_by_class: each rank trains on its own classes alone.

    Raises:
        ValueError: not one of source and folder; no such folder; a source that can't be reached; a number out of its
            range; a corrupt image with on_corrupt="raise".
        ModuleNotFoundError: `datasets` or `kornia` is missing.
    """

    def __init__(
        self,
        source: str | None = None,
        folder: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        image_size: int = 32,
        in_channels: int = 3,
        num_classes: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        mean: float | list[float] = 0.5,
        std: float | list[float] = 0.25,
        flip: bool = True,
        min_crop: float = 0.5,
        on_corrupt: Literal["raise", "skip"] = "raise",
        num_workers: int = 2,
        drop_last: bool = False,
        shard_by_class: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last, shard_by_class)
        if (source is None) == (folder is None):
            raise ValueError(
                f"give either source or folder (data.folder=<path>), got source={source!r} and folder={folder!r}"
            )
        if in_channels not in _MODES:
            raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
        if image_size < 1 or num_workers < 0:
            raise ValueError(f"image_size must be at least 1 and num_workers 0, got {image_size} and {num_workers}")
        if not 0 < val_fraction < 1 or not 0 < min_crop <= 1:
            raise ValueError(f"val_fraction and min_crop are shares, got {val_fraction} and {min_crop}")
        if on_corrupt not in ("raise", "skip"):
            raise ValueError(f"on_corrupt must be 'raise' or 'skip', got {on_corrupt!r}")
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
        if num_classes is None:
            self.class_names = tuple(self._splits["train"].features[label_column].names)
        else:
            self.class_names = tuple(str(i) for i in range(num_classes))
        self.num_classes = len(self.class_names)

    def num_samples(self, part: Part) -> int:
        """How many images a part has."""
        return len(self._part(part)[1])

    def train_classes(self) -> np.ndarray:
        """The class of each training image."""
        split, rows = self._part("train")
        return np.asarray(split[self.label_column])[rows]

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a part, normalized; of the training part augmented, as the epoch sees them."""
        split, rows = self._part(part)
        images, labels = [], []
        for row in rows[indices].tolist():
            sample = split[row]
            image = self._decode(sample[self.image_column], f"{part} image {row}")
            if image is not None:
                images.append(image)
                labels.append(int(sample[self.label_column]))
        if not images:
            return torch.empty(0, self.in_channels, *self.image_size), torch.empty(0, dtype=torch.long)
        batch = torch.stack(images).float() / 255
        if part == "train":
            batch = self._augment(batch, [self.seed, epoch, indices[0], len(indices)])
        return (batch - self.mean) / self.std, torch.tensor(labels)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this rank, augmented, decoded by workers."""
        loader = super().train_dataloader()
        loader.num_workers = self.num_workers
        return loader

    def _eval_loader(self, part: Part) -> BatchLoader:
        loader = super()._eval_loader(part)
        loader.num_workers = self.num_workers
        return loader

    def _decode(self, image: dict[str, Any], place: str) -> Tensor | None:
        """(C, image_size, image_size) uint8; None for an image to leave out."""
        from PIL import Image, ImageOps

        name = image["path"] or place
        try:
            with Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as file:
                picture = ImageOps.fit(
                    file.convert(_MODES[self.in_channels]), self.image_size, Image.Resampling.BICUBIC
                )
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            if self.on_corrupt == "skip":
                warnings.warn(f"left out an image that can't be read: {name} ({error})", stacklevel=2)
                return None
            raise ValueError(
                f"can't read the image {name} ({error}): mend or remove it, or set data.on_corrupt=skip"
            ) from error
        return torch.from_numpy(np.array(picture)).view(*self.image_size, self.in_channels).permute(2, 0, 1)

    def _augment(self, images: Tensor, seed: list[int]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
            return self._augmentation(images)

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
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(INSTALL) from error
        try:
            if self.folder is not None:
                splits = datasets.load_dataset("imagefolder", data_dir=self.folder)
            else:
                splits = datasets.load_dataset(self.source)
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors
            where = f"the folder {self.folder!r}" if self.folder is not None else f"{self.source!r} of the hub"
            raise ValueError(
                f"can't load {where} ({str(error).strip().splitlines()[0]}); with a network, "
                "`hf download --repo-type dataset <name>` fetches a data set once for all, and data=image_folder "
                "data.folder=<path> takes train/<class>/*.png"
            ) from error
        return splits.cast_column(self.image_column, datasets.Image(decode=False))

    @cached_property
    def _parts(self) -> dict[Part, tuple[Any, np.ndarray]]:
        """Split and rows of each part."""
        splits = self._splits
        test = "test" if "test" in splits else "validation"
        if test not in splits:
            raise ValueError(f"the data has neither a split 'test' nor 'validation': {', '.join(splits)}")
        rows = {name: np.arange(len(split)) for name, split in splits.items()}
        if test == "test" and "validation" in splits:
            train, val = (splits["train"], rows["train"]), (splits["validation"], rows["validation"])
        else:
            order = np.random.default_rng(self.split_seed).permutation(rows["train"])
            held_out = max(1, round(self.val_fraction * len(order)))
            train, val = (splits["train"], order[held_out:]), (splits["train"], order[:held_out])
        return {"train": train, "val": val, "test": (splits[test], rows[test])}

    def _part(self, part: Part) -> tuple[Any, np.ndarray]:
        return self._parts[part]
