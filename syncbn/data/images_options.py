"""The options of images in folders or on the Hugging Face hub."""

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
    num_classes: Count | None = option(None, "null: as found in the data")
    image_column: str = option("image", "of the data set")
    label_column: str = option("label", "of the data set")
    mean: float | list[float] = option(0.5, "subtracted from each channel of images in [0, 1]")
    std: Positive | list[Positive] = option(0.25, "what each channel is divided by then")
    flip: bool = option(True, "whether every other training image is mirrored, left to right")
    min_crop: Annotated[float, Range(above=0, high=1)] = option(0.5, "least share of an image's area in a random crop")
    on_corrupt: Literal["raise", "skip"] = option(
        "raise", "what an image that can't be read does; skip: it is left out, with a warning"
    )
    num_workers: Natural = option(2, "processes of each rank that decode, threads for a stream")
    test_split: str | None = option(None, "the split to test on; null: test or, where there is none, validation")
    streaming: bool = option(False, "whether samples are read while they are needed, and nothing is kept on disk")
    shuffle_buffer: Count = option(1000, "samples of a stream, of which the next one is drawn")
    num_train: Count | None = option(None, "training samples of a stream, where the data set doesn't say")


OPTIONS = {"ImageDataModule": ImagesOptions}
