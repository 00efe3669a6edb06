"""Reader of untrusted zarr groups, in format 2 or 3, in a folder or a zip.

The zarr package is not used, because it silently reads missing chunks as zeros, unpickles objects, and decompresses a
chunk to whatever size it declares.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from act_kit.datasets.formats.content import EPISODE_BYTES, one_line
from act_kit.errors import DatasetError

_MAX_CHUNKS = 2_000_000
"""Maximum number of chunks of an array: to look for more would take minutes."""
_MAX_UNWRITTEN_BYTES = 1_000_000_000
"""Maximum size of the chunks that are not stored: a file of a kilobyte can declare terabytes of zeros."""
_MAX_JSON_BYTES = 1_000_000
_HIDDEN = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX/.*)$")


class ZarrFiles(ABC):
    """The files of a group.

    Attributes:
        path: Path of the group.
        zarr_format: 2 or 3.
    """

    path: Path
    zarr_format: int

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all files that are not hidden."""
        return frozenset(name for name in self._all_names if not _HIDDEN.search(name))

    @property
    def num_hidden(self) -> int:
        """Number of hidden files, which macOS creates."""
        return len(self._all_names) - len(self.names)

    @cached_property
    @abstractmethod
    def _all_names(self) -> frozenset[str]: ...

    @abstractmethod
    def get(self, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, or None if it does not exist.

        Raises:
            DatasetError: The file has more than ``max_bytes`` bytes.
        """

    def arrays(self) -> list[str]:
        """Return the names of the arrays, at any depth."""
        end = "/.zarray" if self.zarr_format == 2 else "/zarr.json"
        found = sorted(name for name in self.names if name.endswith(end))
        if self.zarr_format == 3:
            found = [name for name in found if self._describe(name).get("node_type") == "array"]
        return [name.removesuffix(end) for name in found]

    def attributes(self) -> list[str]:
        """Return the names of the attributes of groups and arrays."""
        end = ".zattrs" if self.zarr_format == 2 else "zarr.json"
        found = []
        for name in sorted(self.names):
            if name.rpartition("/")[2] == end:
                content = self._describe(name)
                values = content if self.zarr_format == 2 else content.get("attributes")
                if isinstance(values, dict):
                    found += [name.removesuffix(end) + key for key in values]
        return found

    def _describe(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.get(name, _MAX_JSON_BYTES) or b"{}")
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{self.path / name} is damaged: {one_line(error)}.") from error
        return content if isinstance(content, dict) else {}


class _Folder(ZarrFiles):
    """A group in a folder."""

    def __init__(self, path: Path, zarr_format: int) -> None:
        self.path, self.zarr_format = path, zarr_format

    @cached_property
    def _all_names(self) -> frozenset[str]:
        return frozenset(str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file())

    def get(self, name: str, max_bytes: int) -> bytes | None:
        file = self.path / name
        if not file.is_file():
            return None
        _check_size(file, file.stat().st_size, max_bytes)
        return file.read_bytes()


class _Zip(ZarrFiles):
    """A group in a zip, at the top or in folders."""

    def __init__(self, path: Path, ends: str) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        names = [name for name in self._zip.namelist() if not _HIDDEN.search(name)]
        found = [name for name in names if re.search(rf"(^|/){ends}/(\.zarray|zarr\.json)$", name)]
        if len(found) != 1:
            raise DatasetError(f"{path} holds {len(found)} replay buffers; one was expected, with {ends}.")
        self.zarr_format = 2 if found[0].endswith(".zarray") else 3
        self._root = found[0][: found[0].rindex(ends)]

    @cached_property
    def _all_names(self) -> frozenset[str]:
        names = [name for name in self._zip.namelist() if not name.endswith("/")]
        inside = [name for name in names if name.startswith(self._root) or _HIDDEN.search(name)]
        return frozenset(name.removeprefix(self._root) for name in inside)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        if name not in self._all_names:
            return None
        _check_size(self.path / name, self._zip.getinfo(self._root + name).file_size, max_bytes)
        return self._zip.read(self._root + name)  # at most the declared size


def open_files(path: Path, ends: str) -> ZarrFiles:
    """Open the files of the group at ``path``, which contains an array ``ends``."""
    if path.is_file():
        return _Zip(path, ends)
    return _Folder(path, 3 if (path / ends / "zarr.json").is_file() else 2)


def _check_size(file: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DatasetError(f"{file} has {size} bytes; at most {max_bytes} were expected.")


class ZarrArray:
    """An array of numbers.

    Attributes:
        where: Name in messages.
        shape, dtype: Declared shape and dtype.
        fill: Value of chunks that are not stored; None if none is declared.
    """

    def __init__(self, files: ZarrFiles, name: str) -> None:
        self._files, self._name = files, name
        self.where = f"{files.path}: {name}"
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None
        text = files.get(f"{name}/{'.zarray' if files.zarr_format == 2 else 'zarr.json'}", _MAX_JSON_BYTES)
        if text is None:
            raise DatasetError(f"{files.path} lacks {name}: it is not a replay buffer of diffusion policy.")
        try:
            content = json.loads(text)
            if content["zarr_format"] != files.zarr_format:
                raise ValueError(f"zarr_format is {content['zarr_format']}")
            shape, chunks = self._parse_format_2(content) if files.zarr_format == 2 else self._parse_format_3(content)
            self.shape = tuple(int(size) for size in shape)
            self._chunks = tuple(int(size) for size in chunks)
            if len(self._chunks) != len(self.shape) or min((*self.shape, 0)) < 0 or min((*self._chunks, 1)) < 1:
                raise ValueError(f"shape {self.shape} in chunks of {self._chunks}")
            fill = content.get("fill_value")
            with np.errstate(all="ignore"):
                self.fill = None if fill is None else float(np.array(float(fill)).astype(self.dtype))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DatasetError(f"{self.where} cannot be read: {one_line(error)}.") from error
        self._chunk_bytes = math.prod(self._chunks) * self.dtype.itemsize
        if self._chunk_bytes > EPISODE_BYTES:
            raise DatasetError(f"{self.where} declares chunks of {self._chunk_bytes / 1e9:.0f} GB.")

    def _parse_format_2(self, content: Mapping[str, Any]) -> tuple[Any, Any]:
        if not re.fullmatch(r"[<>|][fiub]\d{1,2}", content["dtype"]):
            raise ValueError(f"dtype {content['dtype']}, numbers were expected")
        self.dtype = np.dtype(content["dtype"])
        compressor = content["compressor"]
        self._codec = "" if compressor is None else compressor["id"]
        if content.get("filters") or self._codec not in ("", *_DECODERS):
            raise ValueError(
                f"compressor {compressor}, filters {content.get('filters')}; only {', '.join(_DECODERS)} are supported"
            )
        self._separator = {".": ".", "/": "/"}[content.get("dimension_separator", ".")]
        self._prefix = ""
        self._order = {"C": "C", "F": "F"}[content["order"]]
        return content["shape"], content["chunks"]

    def _parse_format_3(self, content: Mapping[str, Any]) -> tuple[Any, Any]:
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", content["data_type"]):
            raise ValueError(f"data type {content['data_type']}, numbers were expected")
        first, *rest = content["codecs"]
        names = [codec["name"] for codec in rest]
        if first["name"] != "bytes" or len(names) > 1 or not {*names} <= {*_DECODERS}:
            raise ValueError(f"codecs {[first['name'], *names]}; bytes and one of {', '.join(_DECODERS)} are supported")
        endian = first.get("configuration", {}).get("endian", "little")
        self.dtype = np.dtype(content["data_type"]).newbyteorder({"little": "<", "big": ">"}[endian])
        self._codec = "".join(names)
        keys = content["chunk_key_encoding"]
        is_default = {"default": True, "v2": False}[keys["name"]]
        separator = keys.get("configuration", {}).get("separator", "/" if is_default else ".")
        self._separator = {".": ".", "/": "/"}[separator]
        self._prefix = f"c{self._separator}" if is_default else ""
        self._order = "C"
        if content["chunk_grid"]["name"] != "regular":
            raise ValueError(f"chunk grid {content['chunk_grid']['name']}; only regular grids are supported")
        return content["shape"], content["chunk_grid"]["configuration"]["chunk_shape"]

    def count_chunks(self, num_steps: int) -> tuple[int, int]:
        """Return how many chunks of the first ``num_steps`` steps are stored, and how many are expected.

        Raises:
            DatasetError: The array declares too many chunks, or the missing ones are too large.
        """
        sizes = (num_steps, *self.shape[1:])
        counts = [math.ceil(size / chunk) for size, chunk in zip(sizes, self._chunks, strict=True)]
        num = math.prod(counts)
        if num > _MAX_CHUNKS:
            raise DatasetError(f"{self.where} declares {num} chunks; at most {_MAX_CHUNKS} are supported.")
        keys = (self._key(number) for number in itertools.product(*map(range, counts)))
        num_stored = sum(f"{self._name}/{key}" in self._files.names for key in keys)
        if (num - num_stored) * self._chunk_bytes > _MAX_UNWRITTEN_BYTES:
            gigabytes = (num - num_stored) * self._chunk_bytes / 1e9
            raise DatasetError(f"{self.where} lacks {num - num_stored} of {num} chunks, {gigabytes:.1f} GB.")
        return num_stored, num

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Read steps ``begin`` to ``end``."""
        rows = np.empty((end - begin, *self.shape[1:]), self.dtype)
        first, *others = self._chunks
        numbers = [range(math.ceil(size / chunk)) for size, chunk in zip(self.shape[1:], others, strict=True)]
        for number in itertools.product(range(begin // first, math.ceil(end / first)), *numbers):
            chunk = self._chunk(number)
            low = [n * size for n, size in zip(number, self._chunks, strict=True)]
            top = max(begin, low[0]), min(end, low[0] + first)
            rest = [slice(at, at + size) for at, size in zip(low[1:], others, strict=True)]  # can end beyond the array
            target = rows[(slice(top[0] - begin, top[1] - begin), *rest)]
            target[:] = chunk[(slice(top[0] - low[0], top[1] - low[0]), *map(slice, target.shape[1:]))]
        return rows

    def _key(self, number: tuple[int, ...]) -> str:
        return self._prefix + self._separator.join(map(str, number))

    def _chunk(self, number: tuple[int, ...]) -> np.ndarray:
        if self._last is not None and self._last[0] == number:  # the next episode often begins in the same chunk
            return self._last[1]
        key = self._key(number)
        data: Any = self._files.get(f"{self._name}/{key}", 2 * self._chunk_bytes + 4096)
        if data is None:
            chunk = np.broadcast_to(np.array(self.fill).astype(self.dtype), self._chunks)
        else:
            try:
                data = _DECODERS[self._codec](data, self._chunk_bytes) if self._codec else data
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(f"{self.where}: chunk {key} is damaged: {one_line(error)}.") from error
            if len(data) != self._chunk_bytes:
                raise DatasetError(
                    f"{self.where}: chunk {key} is truncated, or not a chunk of {self._chunk_bytes} bytes."
                )
            order: Any = self._order
            chunk = np.frombuffer(data, self.dtype).reshape(self._chunks, order=order)
        self._last = number, chunk
        return chunk


# -- codecs, which decompress to at most the expected size ----------------------------------------------------------


def _decode_blosc(data: bytes, num_bytes: int) -> bytes:
    # Header, from c-blosc's README_HEADER.rst: uncompressed and compressed size; the decoder does not check the latter.
    sizes = np.frombuffer(data[4:16], "<u4").tolist()
    if len(sizes) != 3 or sizes[0] != num_bytes or sizes[2] != len(data):
        return b""
    return bytes(numcodecs.Blosc().decode(data))


def _decode_zstd(data: bytes, num_bytes: int) -> bytes:
    return bytes(
        numcodecs.Zstd().decode(data, np.empty(num_bytes, np.uint8))
    )  # the decoder never writes beyond the buffer


def _decode_zlib(data: bytes, num_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=47)  # detects zlib and gzip
    decompressed = decompressor.decompress(data, num_bytes + 1)
    return decompressed if decompressor.eof else b""


_DECODERS = {"blosc": _decode_blosc, "zstd": _decode_zstd, "gzip": _decode_zlib, "zlib": _decode_zlib}
