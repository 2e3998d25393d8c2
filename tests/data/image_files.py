"""Folders of test images."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
SHADES = {"ant": 40, "bee": 120, "cat": 220}


def write_images(folder: Path, count: int = 6, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Write `count` images of 20×24 pixels for each split and class, one shade per class, with a red edge."""
    for split in splits:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((20, 24, 3), SHADES[name] + i % 30, dtype=np.uint8)
                pixels[:, :2] = (255, 0, 0)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder
