"""The idx format of MNIST and its relatives: a short header, then an array."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> np.ndarray:
    """Read the array in an idx file, gzipped or not, in native byte order.

    The file starts with two zero bytes, a byte for the type, a byte for the number of dimensions, and their sizes as
    big-endian 32-bit integers. The values follow in big-endian order, the last dimension fastest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't in this format, or its size doesn't match its header.

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
    expected = math.prod(shape) * dtype.itemsize  # Python integers: a forged header can't overflow them
    if len(data) - start != expected:
        raise ValueError(
            f"{path}: {len(data) - start} bytes of values, and {expected} by its header of shape {shape}; "
            "get the file again"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
