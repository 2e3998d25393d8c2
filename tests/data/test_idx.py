"""The idx reader against bytes made by hand."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from syncbn.data.idx import read_idx


def written(folder: Path, data: bytes) -> Path:
    path = folder / "values"
    path.write_bytes(data)
    return path


def test_the_bytes_of_two_rows_of_three(tmp_path: Path) -> None:
    data = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    found = read_idx(written(tmp_path, data))
    np.testing.assert_array_equal(found, np.array([[1, 2, 3], [4, 5, 255]], dtype=np.uint8))
    assert found.dtype == np.uint8
    found[0, 0] = 7  # the reader's own memory
    np.testing.assert_array_equal(read_idx(written(tmp_path, gzip.compress(data)))[1], [4, 5, 255])


@pytest.mark.parametrize(
    ("code", "format", "values", "dtype"),
    [
        (0x08, "B", [0, 200], np.uint8),
        (0x09, "b", [-128, 127], np.int8),
        (0x0B, "h", [-30_000, 258], np.int16),
        (0x0C, "i", [-(2**31), 66_051], np.int32),
        (0x0D, "f", [1.5, -0.1], np.float32),
        (0x0E, "d", [1e300, -0.1], np.float64),
    ],
)
def test_every_type_is_big_endian_in_the_file_and_native_in_memory(
    code: int, format: str, values: list[float], dtype: type, tmp_path: Path
) -> None:
    found = read_idx(written(tmp_path, struct.pack(f">BBBBI2{format}", 0, 0, code, 1, 2, *values)))
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, np.array(values, dtype=dtype))


def test_no_dimensions_are_one_value_and_empty_ones_none(tmp_path: Path) -> None:
    assert read_idx(written(tmp_path, bytes([0, 0, 8, 0, 9]))) == 9
    empty = read_idx(written(tmp_path, bytes([0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 5])))
    assert empty.shape == (0, 5)


WHOLE = bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3])
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file: it begins with nothing"),
        (b"\0\0\x08", "not an idx file"),
        (b"<!DOCTYPE html>", "not an idx file: it begins with 3c 21 44 4f"),  # what a download from a moved place is
        (b"\x89PNG\r\n\x1a\n", "not an idx file"),
        (bytes([0, 0, 7, 1, 0, 0, 0, 0]), "not an idx file"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1, 0]), "cut off in its header of 3 dimensions"),
        (WHOLE[:-1], r"2 bytes of values, and 3 by its header of shape \(3,\)"),
        (WHOLE + b"\0", "4 bytes of values, and 3"),
        (bytes([0, 0, 8, 4]) + b"\xff" * 16, "0 bytes of values, and 34028236"),
        (PACKED[:-6], "damaged"),
        (PACKED[:12] + b"\0\0\0" + PACKED[15:], "damaged"),
        (gzip.compress(WHOLE[:-1], mtime=0), "2 bytes of values"),
    ],
)
def test_what_is_not_a_whole_idx_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(written(tmp_path, data))
    assert str(tmp_path / "values") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
