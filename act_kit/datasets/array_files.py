"""The files of a dataset's arrays, checked before zarr reads them: zarr waits for pipes, and takes whatever memory a
file of a hundred bytes declares."""

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
"""1,024 steps of 30,000 numbers, or 100 pictures of 900 by 900 pixels."""

_MAX_JSON_BYTES = 16 * 2**20
"""Of ``zarr.json``; the digests of a hundred thousand episodes' pictures take half of it."""

_MAX_ROWS = 10**10

_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, kw_only=True)
class ArrayFiles:
    """The files of an array, as far as its ``zarr.json`` is one that act_kit writes.

    Attributes:
        folder: Where they are.
        shape, dtype: As declared.
        chunk_rows: Rows in each chunk, which is as wide as the array.
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
            DamagedFileError: act_kit never writes that.
        """
        file = folder / "zarr.json"
        said = read_json(file, max_bytes=_MAX_JSON_BYTES)
        try:
            shape, chunks = said["shape"], said["chunk_grid"]["configuration"]["chunk_shape"]
            codecs = [codec["name"] for codec in said["codecs"]]
            names = said["chunk_grid"]["name"], said["chunk_key_encoding"]["name"]
            dtype = np.dtype(said["data_type"])
            if not (_are_sizes(shape, 0) and _are_sizes(chunks, 1) and shape and shape[1:] == chunks[1:]):
                raise ValueError(f"shape {shape} in chunks of {chunks}")
            if dtype.kind not in "fiub" or math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
                raise ValueError(f"chunks of {chunks} {dtype}")
            if names != ("regular", "default") or codecs not in (["bytes", "zstd"], ["bytes", "blosc"]):
                raise ValueError(f"chunks {names}, packed by {codecs}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{file} is damaged: {str(error)[:200] or type(error).__name__}.") from error
        return cls(folder=folder, shape=tuple(shape), dtype=dtype, chunk_rows=chunks[0], codec=codecs[1])

    def count_missing(self, num_rows: int) -> int:
        """Return how many chunks of the first rows are missing, which zarr would read as zeros without a word."""
        wanted = math.ceil(num_rows / self.chunk_rows)
        return wanted - sum(number < wanted and self._chunk(number).exists() for number in self._stored())

    def check_chunks(self) -> None:
        """Check what the chunks' files say that they unpack to.

        Raises:
            DamagedFileError: One is no regular file, too large, or says something else than the size of a chunk.
        """
        num_bytes = self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        for number in self._stored():
            file = self._chunk(number)
            about = os.stat(file) if file.exists() else None
            if about and not stat.S_ISREG(about.st_mode):
                raise DamagedFileError(f"{file} is not a regular file.")
            if about and about.st_size > 2 * num_bytes + 4096:
                raise DamagedFileError(f"{file} has {about.st_size} bytes, of a chunk of {num_bytes}.")
            if about and _unpacked_bytes(file, about.st_size, self.codec) != num_bytes:
                raise DamagedFileError(f"{file} is not a chunk of {num_bytes} bytes, packed by {self.codec}.")

    def _stored(self) -> Sequence[int]:
        names = os.listdir(self.folder / "c") if (self.folder / "c").is_dir() else []
        return [int(name) for name in names if name.isdecimal() and len(name) < 12]

    def _chunk(self, number: int) -> Path:
        return self.folder.joinpath("c", str(number), *["0"] * (len(self.shape) - 1))


def _are_sizes(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= _MAX_ROWS for value in values)


def _unpacked_bytes(file: Path, size: int, codec: str) -> int:
    """Return what a packed file says that it unpacks to; -1 if its head is damaged."""
    with file.open("rb") as opened:
        head = opened.read(18)
    if codec == "blosc":  # c-blosc's README_HEADER.rst: bytes unpacked, of a block, and packed, which it does not check
        return int.from_bytes(head[4:8], "little") if int.from_bytes(head[12:16], "little") == size else -1
    if len(head) < 6 or head[:4] != _ZSTD:
        return -1
    # RFC 8878, 3.1.1.1: a descriptor, a window of one byte unless it is a single segment, a dictionary, the size.
    flag, is_single, dictionary = head[4] >> 6, head[4] >> 5 & 1, (0, 1, 2, 4)[head[4] & 3]
    width = (is_single, 2, 4, 8)[flag]
    begin = 5 + (1 - is_single) + dictionary
    unpacked = int.from_bytes(head[begin : begin + width], "little") + (256 if flag == 1 else 0)
    return unpacked if width else -1
