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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.formats.content import EPISODE_BYTES
from act_kit.errors import DatasetError

_MAX_CHUNKS = 2_000_000
"""Maximum number of chunks of an array: to look for more would take minutes."""
_MAX_UNWRITTEN_BYTES = 1_000_000_000
"""Maximum size of the chunks that are not stored: a file of a kilobyte can declare terabytes of zeros."""
_MAX_JSON_BYTES = 1_000_000
_HIDDEN = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX/.*)$")


class ZarrFiles:
    """The files of a group, in a folder, or in a zip at the top or in folders.

    Attributes:
        path: Path of the group.
        zarr_format: 2 or 3.
        names: Names of all files but the hidden ones.
        num_hidden: Number of hidden files, which macOS creates.
    """

    def __init__(self, path: Path, marker: str) -> None:
        """Open the group at ``path``, which contains an array ``marker``."""
        self.path = path
        visible: dict[str, int] = {}
        if path.is_file():
            archive = zipfile.ZipFile(path)
            for entry in archive.infolist():
                if not entry.is_dir():
                    visible[entry.filename] = entry.file_size
        else:
            for file in filter(Path.is_file, path.rglob("*")):
                visible[str(file.relative_to(path))] = file.stat().st_size
        hidden = list(filter(_HIDDEN.search, visible))
        for name in hidden:
            del visible[name]
        self.num_hidden = len(hidden)
        self._sizes = visible
        self._read: Callable[[str], bytes] = lambda name: (path / name).read_bytes()
        if path.is_file():
            found = [name for name in visible if re.search(rf"(^|/){marker}/(\.zarray|zarr\.json)$", name)]
            if len(found) != 1:
                raise DatasetError(f"{path} holds {len(found)} replay buffers; one was expected, with {marker}.")
            root = found[0][: found[0].rindex(marker)]
            self._sizes = {name.removeprefix(root): visible[name] for name in visible if name.startswith(root)}
            self._read = lambda name: archive.read(root + name)  # at most the declared size
        self.names = self._sizes.keys()
        self.zarr_format = 3 if f"{marker}/zarr.json" in self.names else 2

    def get(self, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, or None if it does not exist.

        Raises:
            DatasetError: The file has more than ``max_bytes`` bytes.
        """
        if name not in self._sizes:
            return None
        size = self._sizes[name]
        if size > max_bytes:
            raise DatasetError(f"{self.path / name} has {size} bytes; at most {max_bytes} were expected.")
        return self._read(name)

    def array_names(self) -> list[str]:
        """Return the names of the arrays, at any depth."""
        end = "/.zarray" if self.zarr_format == 2 else "/zarr.json"
        found = []
        for name in sorted(self.names):
            if name.endswith(end) and (self.zarr_format == 2 or self._json(name).get("node_type") == "array"):
                found.append(name.removesuffix(end))
        return found

    def attribute_names(self) -> list[str]:
        """Return the names of the attributes of groups and arrays."""
        end = ".zattrs" if self.zarr_format == 2 else "zarr.json"
        found = []
        for name in sorted(self.names):
            if name.rpartition("/")[2] == end:
                content = self._json(name)
                attributes = content if self.zarr_format == 2 else content.get("attributes")
                found += [name.removesuffix(end) + key for key in attributes or ()]
        return found

    def _json(self, name: str) -> dict[str, Any]:
        with as_dataset_error(f"{self.path / name} is damaged"):
            content = json.loads(self.get(name, _MAX_JSON_BYTES) or b"{}")
        return content if isinstance(content, dict) else {}


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
        with as_dataset_error(f"{self.where} cannot be read"):
            content = json.loads(text)
            if content["zarr_format"] != files.zarr_format:
                raise ValueError(f"zarr_format is {content['zarr_format']}")
            chunks = self._parse_format_2(content) if files.zarr_format == 2 else self._parse_format_3(content)
            self.shape = tuple(map(int, content["shape"]))
            self._chunks = tuple(map(int, chunks))
            if len(self._chunks) != len(self.shape) or min((*self.shape, 0)) < 0 or min((*self._chunks, 1)) < 1:
                raise ValueError(f"shape {self.shape} in chunks of {self._chunks}")
            if self._codec not in _DECODERS:
                raise ValueError(f"codec {self._codec}; only {', '.join(_DECODERS)} are supported")
            fill = content.get("fill_value")
            with np.errstate(all="ignore"):
                self.fill = None if fill is None else float(np.array(float(fill)).astype(self.dtype))
        self._chunk_bytes = math.prod(self._chunks) * self.dtype.itemsize
        if self._chunk_bytes > EPISODE_BYTES:
            raise DatasetError(f"{self.where} declares chunks of {self._chunk_bytes // 10**9} GB.")

    def _parse_format_2(self, content: Mapping[str, Any]) -> Any:
        """Read the encoding of a format 2 array; return the shape of a chunk."""
        if not re.fullmatch(r"[<>|][fiub]\d{1,2}", content["dtype"]):
            raise ValueError(f"dtype {content['dtype']}, numbers were expected")
        self.dtype = np.dtype(content["dtype"])
        self._codec = (content["compressor"] or {"id": "none"})["id"]
        if content.get("filters"):
            raise ValueError(f"filters {content['filters']}; none are supported")
        self._separator = _one_of((".", "/"), content.get("dimension_separator", "."))
        self._prefix = ""
        self._order = _one_of(("C", "F"), content["order"])
        return content["chunks"]

    def _parse_format_3(self, content: Mapping[str, Any]) -> Any:
        """Read the encoding of a format 3 array; return the shape of a chunk."""
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", content["data_type"]):
            raise ValueError(f"data type {content['data_type']}, numbers were expected")
        first, *rest = content["codecs"]
        _one_of(("bytes",), first["name"])
        endian = _one_of(("little", "big"), first.get("configuration", {}).get("endian", "little"))
        self.dtype = np.dtype(content["data_type"]).newbyteorder("<" if endian == "little" else ">")
        self._codec = ", ".join(codec["name"] for codec in rest) or "none"
        keys = content["chunk_key_encoding"]
        is_default = _one_of(("default", "v2"), keys["name"]) == "default"
        separator = keys.get("configuration", {}).get("separator", "/" if is_default else ".")
        self._separator = _one_of((".", "/"), separator)
        self._prefix = f"c{self._separator}" if is_default else ""
        self._order = "C"
        _one_of(("regular",), content["chunk_grid"]["name"])
        return content["chunk_grid"]["configuration"]["chunk_shape"]

    def count_chunks(self, num_steps: int) -> tuple[int, int]:
        """Return how many chunks of the first ``num_steps`` steps are stored, and how many are expected.

        Raises:
            DatasetError: The array declares too many chunks, or the missing ones are too large.
        """
        counts = self._chunk_counts((num_steps, *self.shape[1:]))
        num = math.prod(counts)
        if num > _MAX_CHUNKS:
            raise DatasetError(f"{self.where} declares {num} chunks; at most {_MAX_CHUNKS} are supported.")
        keys = map(self._key, itertools.product(*map(range, counts)))
        num_missing = sum(key not in self._files.names for key in keys)
        if num_missing * self._chunk_bytes > _MAX_UNWRITTEN_BYTES:
            gigabytes = num_missing * self._chunk_bytes / 1e9
            raise DatasetError(f"{self.where} lacks {num_missing} of {num} chunks, {gigabytes:.1f} GB.")
        return num - num_missing, num

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Read steps ``begin`` to ``end``."""
        rows = np.empty((end - begin, *self.shape[1:]), self.dtype)
        first, *others = self._chunk_counts((end, *self.shape[1:]))
        for number in itertools.product(range(begin // self._chunks[0], first), *map(range, others)):
            chunk, low = self._chunk(number), np.multiply(number, self._chunks).tolist()
            top, bottom = max(begin, low[0]), min(end, low[0] + self._chunks[0])
            columns = [slice(at, at + size) for at, size in zip(low[1:], self._chunks[1:], strict=True)]
            target = rows[(slice(top - begin, bottom - begin), *columns)]  # the chunk can end beyond the array
            target[:] = chunk[(slice(top - low[0], bottom - low[0]), *map(slice, target.shape[1:]))]
        return rows

    def _chunk_counts(self, shape: tuple[int, ...]) -> list[int]:
        return [-(-size // chunk) for size, chunk in zip(shape, self._chunks, strict=True)]

    def _key(self, number: tuple[int, ...]) -> str:
        return f"{self._name}/{self._prefix}{self._separator.join(map(str, number))}"

    def _chunk(self, number: tuple[int, ...]) -> np.ndarray:
        if self._last is not None and self._last[0] == number:  # the next episode often begins in the same chunk
            return self._last[1]
        key = self._key(number)
        data = self._files.get(key, 2 * self._chunk_bytes + 4096)
        if data is None:
            chunk = np.broadcast_to(np.array(self.fill).astype(self.dtype), self._chunks)
        else:
            with as_dataset_error(f"{self.where}: chunk {key.removeprefix(f'{self._name}/')} is damaged"):
                data = _DECODERS[self._codec](data, self._chunk_bytes)
                if len(data) != self._chunk_bytes:
                    raise ValueError(f"it is truncated, or not a chunk of {self._chunk_bytes} bytes")
                order: Any = self._order
                chunk = np.frombuffer(data, self.dtype).reshape(self._chunks, order=order)
        self._last = number, chunk
        return chunk


def _one_of(expected: tuple[str, ...], value: object) -> str:
    if value not in expected:
        raise ValueError(f"{value!r}, {' or '.join(expected)} was expected")
    return str(value)


# -- codecs, which decompress to at most the expected size ----------------------------------------------------------


def _decode_blosc(data: bytes, num_bytes: int) -> bytes:
    # Header, from c-blosc's README_HEADER.rst: uncompressed and compressed size; the decoder does not check the latter.
    sizes = np.frombuffer(data[4:16], "<u4").tolist()
    if len(sizes) != 3 or sizes[0] != num_bytes or sizes[2] != len(data):
        return b""
    return bytes(numcodecs.Blosc().decode(data))


def _decode_zstd(data: bytes, num_bytes: int) -> bytes:
    buffer = np.empty(num_bytes, np.uint8)  # the decoder never writes beyond it
    return bytes(numcodecs.Zstd().decode(data, buffer))


def _decode_zlib(data: bytes, num_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=47)  # detects zlib and gzip
    decompressed = decompressor.decompress(data, num_bytes + 1)
    return decompressed if decompressor.eof else b""


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "blosc": _decode_blosc,
    "zstd": _decode_zstd,
    "gzip": _decode_zlib,
    "zlib": _decode_zlib,
    "none": lambda data, num_bytes: data,
}
