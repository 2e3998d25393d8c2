"""The idx format of MNIST and its kin: a few bytes of header, and an array after it."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, compressed by gzip or not, in the machine's byte order.

    The file begins with two zero bytes, one that names the type, one with the number of dimensions, and their sizes as
    big-endian 32-bit integers; the values follow, big-endian too, the last dimension fastest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't in this format, or its size isn't the one that its header gives.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST Database, http://yann.lecun.com/exdb/mnist.
    """
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged ({error}); get the file again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise ValueError(f"{path}: not an idx file: it begins with {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path}: cut off in its header of {data[3]} dimensions; get the file again")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(_TYPES[data[2]])
    expected = math.prod(shape) * dtype.itemsize  # of Python's integers, which a forged header can't overflow
    if len(data) - start != expected:
        raise ValueError(
            f"{path}: {len(data) - start} bytes of values, and {expected} by its header of shape {shape}; "
            "get the file again"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
