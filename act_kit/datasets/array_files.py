"""Checks of the files of a dataset's arrays, done before zarr reads them.

zarr blocks on pipes, and allocates as much memory as a file of a hundred bytes declares.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import DamagedFileError
from act_kit.files import read_json

_MAX_CHUNK_BYTES = 2**28
"""Enough for 1,024 steps of 30,000 numbers, or 100 images of 900 by 900 pixels."""

_MAX_JSON_BYTES = 16 * 2**20
"""Maximum size of ``zarr.json``; the digests of the images of 100,000 episodes take half of it."""

_MAX_ROWS = 10**10

_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, kw_only=True)
class ArrayFiles:
    """The files of an array, with what its ``zarr.json`` declares.

    Attributes:
        folder: Folder of the array.
        shape, dtype: Declared shape and dtype.
        chunk_rows: Number of rows of a chunk; a chunk is as wide as the array.
        codec: zstd or blosc.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    codec: str

    @classmethod
    def read(cls, folder: Path) -> ArrayFiles:
        """Read what the array in ``folder`` declares.

        Raises:
            DamagedFileError: act_kit writes no such declaration.
        """
        file = folder / "zarr.json"
        declared = read_json(file, max_bytes=_MAX_JSON_BYTES)
        try:
            shape, chunks = declared["shape"], declared["chunk_grid"]["configuration"]["chunk_shape"]
            codecs = [codec["name"] for codec in declared["codecs"]]
            names = declared["chunk_grid"]["name"], declared["chunk_key_encoding"]["name"]
            dtype = np.dtype(declared["data_type"])
            if not (_are_sizes(shape, 0) and _are_sizes(chunks, 1) and shape and shape[1:] == chunks[1:]):
                raise ValueError(f"shape {shape} in chunks of {chunks}")
            if dtype.kind not in "fiub" or math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
                raise ValueError(f"chunks of {chunks} {dtype}")
            if names != ("regular", "default") or codecs not in (["bytes", "zstd"], ["bytes", "blosc"]):
                raise ValueError(f"chunks {names}, compressed by {codecs}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{file} is damaged: {str(error)[:200] or type(error).__name__}.") from error
        return cls(folder=folder, shape=tuple(shape), dtype=dtype, chunk_rows=chunks[0], codec=codecs[1])

    def count_missing(self, num_rows: int) -> int:
        """Return how many chunks of the first ``num_rows`` rows are missing; zarr would read them silently as zeros."""
        num_chunks = math.ceil(num_rows / self.chunk_rows)
        return num_chunks - sum(number < num_chunks and self._chunk(number).exists() for number in self._stored())

    def check_chunks(self) -> None:
        """Check the uncompressed size that the header of each chunk file declares.

        Raises:
            DamagedFileError: A chunk is not a regular file, is too large, or declares a wrong size.
        """
        num_bytes = self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        for number in self._stored():
            file = self._chunk(number)
            if not file.exists():
                continue
            file_stat = os.stat(file)
            if not stat.S_ISREG(file_stat.st_mode):
                raise DamagedFileError(f"{file} is not a regular file.")
            if file_stat.st_size > 2 * num_bytes + 4096:
                raise DamagedFileError(f"{file} has {file_stat.st_size} bytes, for a chunk of {num_bytes}.")
            if _uncompressed_bytes(file, file_stat.st_size, self.codec) != num_bytes:
                raise DamagedFileError(f"{file} is not a chunk of {num_bytes} bytes, compressed by {self.codec}.")

    def _stored(self) -> Sequence[int]:
        names = os.listdir(self.folder / "c") if (self.folder / "c").is_dir() else []
        return [int(name) for name in names if name.isdecimal() and len(name) < 12]

    def _chunk(self, number: int) -> Path:
        return self.folder.joinpath("c", str(number), *["0"] * (len(self.shape) - 1))


def _are_sizes(values: Any, minimum: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and minimum <= value <= _MAX_ROWS for value in values)


def _uncompressed_bytes(file: Path, size: int, codec: str) -> int:
    """Return the uncompressed size that a chunk file declares; -1 if its header is damaged."""
    with file.open("rb") as opened:
        header = opened.read(18)
    if codec == "blosc":
        # c-blosc's README_HEADER.rst: bytes uncompressed, of a block, and compressed; the decoder ignores the last.
        return int.from_bytes(header[4:8], "little") if int.from_bytes(header[12:16], "little") == size else -1
    if len(header) < 6 or header[:4] != _ZSTD:
        return -1
    # RFC 8878, 3.1.1.1: descriptor, window of one byte unless it is a single segment, dictionary, content size.
    flag, is_single, dictionary = header[4] >> 6, header[4] >> 5 & 1, (0, 1, 2, 4)[header[4] & 3]
    width = (is_single, 2, 4, 8)[flag]
    begin = 5 + (1 - is_single) + dictionary
    uncompressed = int.from_bytes(header[begin : begin + width], "little") + (256 if flag == 1 else 0)
    return uncompressed if width else -1
