"""Options of images in folders or on the Hugging Face hub."""

from dataclasses import dataclass
from typing import Annotated, Literal

from syncbn.data.shared_options import OfClasses
from syncbn.norm.core.options import Count, Natural, Positive, Range, Share, option


@dataclass
class ImagesOptions(OfClasses):
    """Images in folders or on the Hugging Face hub."""

    source: str | None = option(None, "a data set of the Hugging Face hub, or a folder of data files in its formats")
    folder: str | None = option(None, "a folder train/<class>/*.png, test/<class>/*.png and so on")
    val_fraction: Share = option(0.1, "part of the training images for validation, where there is no such split")
    image_size: Count = option(32, "height and width in pixels")
    in_channels: Literal[1, 3] = option(3, "1: grey", refusal="in_channels must be 1 or 3, got {value}")
    num_classes: Count | None = option(None, "number of classes; null: as in the data")
    image_column: str = option("image", "column with the image")
    label_column: str = option("label", "column with the label")
    mean: float | list[float] = option(0.5, "mean subtracted from each channel of images in [0, 1]")
    std: Positive | list[Positive] = option(0.25, "standard deviation that each channel is then divided by")
    flip: bool = option(True, "whether to mirror training images left to right with probability 1/2")
    min_crop: Annotated[float, Range(above=0, high=1)] = option(
        0.5, "smallest share of an image's area in a random crop"
    )
    on_corrupt: Literal["raise", "skip"] = option(
        "raise", "what to do with a corrupt image; skip: leave it out with a warning"
    )
    num_workers: Natural = option(2, "decoding processes of each rank, threads for a stream")
    test_split: str | None = option(None, "the split to test on; null: test or, where there is none, validation")
    streaming: bool = option(False, "whether to read samples on demand and keep nothing on disk")
    shuffle_buffer: Count = option(1000, "size of a stream's shuffle buffer, in samples")
    num_train: Count | None = option(None, "training samples of a stream, where the data set doesn't record it")


OPTIONS = {"ImageDataModule": ImagesOptions}
