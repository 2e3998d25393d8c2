"""Splits of a Hugging Face data set, from the hub or from folders, and the part each is used for."""

from typing import Any

from syncbn.data.base import Part
from syncbn.norm.core.messages import first_line

INSTALL = 'images need `datasets` and `kornia`: pip install "syncbn[vision]"'


def load_splits(source: str | None, folder: str | None, image_column: str, streaming: bool) -> Any:
    """Load the splits by name, without decoding their images.

    Raises:
        ValueError: a folder that doesn't exist, or a source that can't be reached.
        ModuleNotFoundError: `datasets` is missing.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error
    try:
        if folder is not None:
            splits = datasets.load_dataset("imagefolder", data_dir=folder, streaming=streaming)
        else:
            splits = datasets.load_dataset(source, streaming=streaming)
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        where = f"the folder {folder!r}" if folder is not None else f"{source!r} of the hub"
        raise ValueError(
            f"can't load {where} ({first_line(error)}); with a network, "
            "`hf download --repo-type dataset <name>` fetches a data set once for all, and data=image_folder "
            "data.folder=<path> takes train/<class>/*.png"
        ) from error
    return splits.cast_column(image_column, datasets.Image(decode=False))


def splits_of_parts(splits: Any, test_split: str | None) -> dict[Part, str]:
    """Split of each part; "train" for validation means that validation is held out of it.

    Args:
        splits: splits by name.
        test_split: split to test on; None for "test" or, where there is none, "validation".

    Raises:
        ValueError: an unknown split.
    """
    allowed = [test_split] if test_split is not None else ["test", "validation"]
    test = next((name for name in allowed if name in splits), None)
    if test is None or "train" not in splits:
        raise ValueError(
            f"expected splits 'train' and {' or '.join(map(repr, allowed))}, got {', '.join(splits)}; "
            "data.test_split=<name> chooses the one to test on"
        )
    return {
        "train": "train",
        "val": "validation" if "validation" in splits and test != "validation" else "train",
        "test": test,
    }
