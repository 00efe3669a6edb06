"""The replay buffers of diffusion policy (Chi et al. 2023, arXiv:2303.04137), in and out.

The layout is that of ``ReplayBuffer`` in github.com/real-stanford/diffusion_policy: a zarr group of format 2 with the
steps of all episodes in ``data/state``, ``data/action``, ``data/<camera>`` and so on, one after the other, and
``meta/episode_ends``. It is distributed as a folder or as a zip of one.

What is written is written with zarr. What is read is anybody's file, and read here: zarr would take missing chunks for
zeros, unpickle objects, and unpack a chunk to whatever size it says.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from act_kit.datasets.episode import Recording
from act_kit.datasets.formats.content import (
    EPISODE_BYTES,
    IMAGES,
    SIDECAR,
    Content,
    Layout,
    check_frames,
    check_known,
    check_layout,
    check_steps,
    foreign,
    from_json,
    one_line,
)
from act_kit.errors import DatasetError

HZ = 10
"""Of their tasks; the files do not say."""

_ENDS = "meta/episode_ends"


# -- in ----------------------------------------------------------------------------------------------------------------


def read(path: Path, task: str) -> Content:
    """Open the replay buffer at ``path``, a folder or a zip; its episodes are read one at a time, later.

    Raises:
        DatasetError: It is damaged, is something else, or uses what their own code does not.
    """
    try:
        files = _Zip(path) if path.is_file() else _Folder(path)
        ends = _read_ends(path, files)
        sidecar = files.get(SIDECAR, 100_000_000)
        known = from_json(path, sidecar) if sidecar is not None else None
        arrays = {name: _Array(path, files, f"data/{name}") for name in files.arrays("data")}
        fields = known.fields if known else ("state", "action")
        missing = [name for name in fields if name not in arrays]
        if missing:
            raise DatasetError(f"{path} lacks data/{missing[0]}; it has {', '.join(arrays) or 'no arrays'}.")
        cameras = [name for name, a in arrays.items() if len(a.shape) == 4 and a.shape[3] == 3 and name not in fields]
        names = {name: arrays[name] for name in fields} | {IMAGES + camera: arrays[camera] for camera in cameras}
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{path} is damaged: {one_line(error)}.") from error
    lengths = np.diff(ends, prepend=0)

    def layout(num_steps: int) -> Layout:
        return {name: ((num_steps, *array.shape[1:]), array.dtype) for name, array in names.items()}

    for name, array in names.items():
        if len(array.shape) == 0 or array.shape[0] < ends[-1]:
            raise DatasetError(f"{path}: {name} has shape {array.shape}, but the episodes end at step {ends[-1]}.")
    check_layout(str(path), layout(int(lengths.max())), layout(int(lengths.max())))
    notes = []
    if known is None:
        known = foreign(task, len(ends), cameras, layout(1), int(lengths.max()), HZ)
        left = sorted(set(arrays) - {*fields, *cameras})
        notes = [f"the files name no rate: {HZ} Hz is assumed, their tasks'"]
        notes += [f"left behind: {', '.join(left)}"] if left else []
        notes += ["actions are rounded to float32"] if arrays["action"].dtype == np.float64 else []
    check_known(path, known, layout(1), len(ends))

    def recordings() -> Iterator[Recording]:
        for index, episode in enumerate(known.episodes):
            where, end = f"{path}, episode {index}", int(ends[index])
            begin = end - int(lengths[index])
            try:
                steps = {name: check_steps(where, name, arrays[name].rows(begin, end)) for name in fields}
                images = {camera: check_frames(where, camera, arrays[camera].rows(begin, end)) for camera in cameras}
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(f"{where} is damaged: {one_line(error)}.") from error
            yield replace(episode, steps=steps, images=images)

    return Content(
        info=known.info,
        num_episodes=len(ends),
        recordings=recordings(),
        attempts=known.attempts,
        cameras=known.cameras,
        fingerprint=known.fingerprint,
        notes=notes,
    )


def _read_ends(path: Path, files: _Folder | _Zip) -> np.ndarray:
    array = _Array(path, files, _ENDS)
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] * 8 > EPISODE_BYTES:
        raise DatasetError(
            f"{path}: {_ENDS} is {array.dtype} of shape {array.shape}; one axis of integers is expected."
        )
    ends = array.rows(0, array.shape[0]).astype(np.int64)
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise DatasetError(f"{path}: {_ENDS} must grow from episode to episode, and there must be one.")
    return ends


class _Folder:
    """The files of a store that is a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str, most: int) -> bytes | None:
        """Return a file, None where there is none; a file of more than ``most`` bytes is refused."""
        file = self._path / key
        if not file.is_file():
            return None
        _check_size(file, file.stat().st_size, most)
        return file.read_bytes()

    def arrays(self, group: str) -> list[str]:
        """Name the arrays of a group."""
        return sorted(file.parent.name for file in self._path.glob(f"{group}/*/.zarray"))


class _Zip:
    """The files of a store that is zipped, perhaps with the folders it was in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
        self._names = set(self._zip.namelist())
        found = sorted(name for name in self._names if name.endswith(f"{_ENDS}/.zarray"))
        if len(found) != 1:
            raise DatasetError(f"{path} holds {len(found)} replay buffers; one was expected, with {_ENDS}.")
        self._root = found[0].removesuffix(f"{_ENDS}/.zarray")

    def get(self, key: str, most: int) -> bytes | None:
        """Return a file, None where there is none; a file of more than ``most`` bytes is refused."""
        name = self._root + key
        if name not in self._names:
            return None
        _check_size(self._path / name, self._zip.getinfo(name).file_size, most)
        return self._zip.read(name)  # never more than it declares

    def arrays(self, group: str) -> list[str]:
        """Name the arrays of a group."""
        pattern = re.compile(re.escape(f"{self._root}{group}/") + r"([^/]+)/\.zarray")
        return sorted(found[1] for name in self._names if (found := pattern.fullmatch(name)))


def _check_size(file: Path, size: int, most: int) -> None:
    if size > most:
        raise DatasetError(f"{file} has {size} bytes; at most {most} can belong there.")


class _Array:
    """An array of zarr's format 2, of numbers, compressed with Blosc or not at all, as their code writes them."""

    def __init__(self, path: Path, files: _Folder | _Zip, name: str) -> None:
        self._where, self._files, self._name = f"{path}: {name}", files, name
        text = files.get(f"{name}/.zarray", 1_000_000)
        if text is None:
            raise DatasetError(f"{path} lacks {name}: it is not a replay buffer of diffusion policy.")
        try:
            said = json.loads(text)
            self.shape = tuple(int(size) for size in said["shape"])
            self._chunks = tuple(int(size) for size in said["chunks"])
            if not re.fullmatch(r"[<>|][fiub]\d{1,2}", said["dtype"]):
                raise ValueError(f"dtype {said['dtype']}, numbers were expected")
            self.dtype = np.dtype(said["dtype"])
            compressor = said["compressor"]
            self._blosc = compressor is not None
            if said["zarr_format"] != 2 or said.get("filters") or (self._blosc and compressor["id"] != "blosc"):
                raise ValueError(f"compressor {compressor}, filters {said.get('filters')}; only Blosc is read")
            if len(self._chunks) != len(self.shape) or min((*self.shape, 0)) < 0 or min((*self._chunks, 1)) < 1:
                raise ValueError(f"shape {self.shape} in chunks of {self._chunks}")
            self._separator = {".": ".", "/": "/"}[said.get("dimension_separator", ".")]
            self._order = {"C": "C", "F": "F"}[said["order"]]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DatasetError(f"{self._where} cannot be read: {one_line(error)}.") from error
        self._chunk_bytes = math.prod(self._chunks) * self.dtype.itemsize
        if self._chunk_bytes > EPISODE_BYTES:
            raise DatasetError(f"{self._where} declares chunks of {self._chunk_bytes / 1e9:.0f} GB.")
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Read steps ``begin`` to ``end``."""
        rows = np.empty((end - begin, *self.shape[1:]), self.dtype)
        first, *others = self._chunks
        numbers = [range(math.ceil(size / chunk)) for size, chunk in zip(self.shape[1:], others, strict=True)]
        for number in itertools.product(range(begin // first, math.ceil(end / first)), *numbers):
            chunk = self._chunk(number)
            low = [n * size for n, size in zip(number, self._chunks, strict=True)]
            top = max(begin, low[0]), min(end, low[0] + first)
            rest = [slice(at, at + size) for at, size in zip(low[1:], others, strict=True)]  # may end beyond the array
            target = rows[(slice(top[0] - begin, top[1] - begin), *rest)]
            target[:] = chunk[(slice(top[0] - low[0], top[1] - low[0]), *map(slice, target.shape[1:]))]
        return rows

    def _chunk(self, number: tuple[int, ...]) -> np.ndarray:
        if self._last is not None and self._last[0] == number:  # the next episode often begins in it
            return self._last[1]
        key = self._separator.join(map(str, number))
        data = self._files.get(f"{self._name}/{key}", 2 * self._chunk_bytes + 4096)
        if data is None:
            raise DatasetError(f"{self._where} lacks chunk {key}.")
        if self._blosc:
            # Its header, in c-blosc's README_HEADER.rst: what it unpacks to, and how long it is, which is not checked.
            sizes = np.frombuffer(data[4:16], "<u4").tolist()
            if len(sizes) != 3 or sizes[0] != self._chunk_bytes or sizes[2] != len(data):
                raise DatasetError(
                    f"{self._where}: chunk {key} is truncated, or no chunk of {self._chunk_bytes} bytes."
                )
            data = bytes(numcodecs.Blosc().decode(data))
        if len(data) != self._chunk_bytes:
            raise DatasetError(f"{self._where}: chunk {key} has {len(data)} bytes, not {self._chunk_bytes}.")
        order: Any = self._order
        self._last = number, np.frombuffer(data, self.dtype).reshape(self._chunks, order=order)
        return self._last[1]


# -- out ---------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes into a new folder ``path``; return what the format cannot hold: nothing."""
    group = zarr.open_group(path, mode="w-", zarr_format=2)
    arrays: dict[str, Any] = {}
    ends = [0]
    with zarr.config.set({"array.write_empty_chunks": True}):  # a missing chunk is then always damage
        for recording in content.recordings:
            for name, values in {**recording.steps, **recording.images}.items():
                if name not in arrays:
                    arrays[name] = group.create_array(
                        f"data/{name}", shape=(0, *values.shape[1:]), dtype=values.dtype,
                        chunks=(max(1, 2_000_000 // values[0].nbytes) if values.ndim == 4 else 1024, *values.shape[1:]),
                        compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
                    )  # fmt: skip
                arrays[name].resize((ends[-1] + len(values), *values.shape[1:]))
                arrays[name][ends[-1] :] = values
            ends.append(ends[-1] + len(recording))
        group.create_array(_ENDS, data=np.array(ends[1:], np.int64), compressors=None)
    return []
