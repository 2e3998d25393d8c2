"""What checkpoints hold beside tensors and runs no code when it is read: options, paths, dates, numpy's numbers."""

import argparse
import datetime
import pathlib
import sys
from typing import Any


def harmless_globals() -> list[Any]:
    """Return what `torch.serialization.safe_globals` takes: classes and functions, with their older and newer names."""
    found: list[Any] = [
        argparse.Namespace,
        datetime.date,
        datetime.datetime,
        datetime.timedelta,
    ]
    # A path of the other system can't be made here, and none is needed.
    for module in ("pathlib", "pathlib._local"):
        found += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")]
        found += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    return found + _numpys()


def _numpys() -> list[Any]:
    """Arrays and scalars of numbers."""
    try:
        import numpy as np
    except ModuleNotFoundError:
        return []
    one = np.float64(1)
    scalar, rebuilt = one.__reduce__()[0], one.reshape(1).__reduce__()[0]
    found: list[Any] = [np.ndarray, np.dtype]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of numpy 1 and 2
        found += [(scalar, f"{module}.scalar"), (rebuilt, f"{module}._reconstruct")]
    kinds = (np.bool_, np.str_, *(getattr(np, f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
    return found + [type(np.dtype(kind)) for kind in (*kinds, np.float16, np.float32, np.float64)]


def is_array(value: Any) -> bool:
    """Whether a value is a numpy array of numbers; numpy isn't imported for it."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf"
