"""Image decoding: file to tensor, and the handling of corrupt files."""

import io
import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

MODES = {1: "L", 3: "RGB"}  # Pillow's name for a number of channels


def decode(
    image: dict[str, Any], place: str, channels: int, size: tuple[int, int], on_corrupt: Literal["raise", "skip"]
) -> Tensor | None:
    """Decode the center of an image as (channels, *size) uint8; None for a corrupt image that is skipped.

    Args:
        image: "bytes" of a file or, where they are None, its "path", as in `datasets`.
        place: name in messages of an image without a path.
        channels: 1 or 3.
        size: height and width; the shorter side is resized to it and the longer one cropped about the center.
        on_corrupt: "raise" for a file that can't be read, or "skip" it with a warning.

    Raises:
        ValueError: a file that can't be read, with on_corrupt="raise".
    """
    from PIL import Image, ImageOps

    name = image["path"] or place
    try:
        with Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as file:
            picture = ImageOps.fit(file.convert(MODES[channels]), size, Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        if on_corrupt == "skip":
            warnings.warn(f"left out an image that can't be read: {name} ({error})", stacklevel=2)
            return None
        raise ValueError(
            f"can't read the image {name} ({error}): mend or remove it, or set data.on_corrupt=skip"
        ) from error
    return torch.from_numpy(np.array(picture)).view(*size, channels).permute(2, 0, 1)
