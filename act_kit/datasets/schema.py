"""What the folder of a dataset contains: its metadata, and the dtype, rank and number of rows of each array."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.errors import DatasetError
from act_kit.files import check_name, read_json, require_regular
from act_kit.rollouts.episode import STEP_FIELDS, dtype_of

MAX_COUNT = 10**10
"""Maximum number of steps, episodes and attempts."""

_MAX_CHUNK_BYTES = 2**28
"""Enough for 1,024 steps of 30,000 numbers, or 100 images of 900 by 900 pixels."""

_MAX_JSON_BYTES = 16 * 2**20
"""Maximum size of ``zarr.json``; the digests of the images of 100,000 episodes take half of it."""

_ZSTD = b"\x28\xb5\x2f\xfd"

EPISODE_ARRAYS = ("meta/attempt", "meta/source", "meta/success_step", "meta/episode_ends")
"""Arrays of int64 with one row per episode."""

ARRAYS: dict[str, type] = {
    **{f"data/{name}": dtype_of(name) for name in STEP_FIELDS},
    **dict.fromkeys(EPISODE_ARRAYS, np.int64),
    "meta/rand_vec": np.float64,
    "meta/attempts/rand_vec": np.float64,
    "meta/attempts/num_steps": np.int64,
    "meta/attempts/kept": np.bool_,
}
"""Dtype of each array."""

_REQUIRED = ("data/state", "data/action", *EPISODE_ARRAYS)
"""Arrays that every dataset has; it has ``meta/attempts`` if it has ``meta/rand_vec``."""

_VECTORS = ("state", "action", "executed_action", "physics", "rand_vec")
"""Arrays that have several numbers in each row."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Metadata of a dataset: everything that determines its bytes, and nothing else.

    Attributes:
        task: Meta-World task, or the task name of imported data.
        num_wanted: Number of episodes requested.
        seed: Seed of the initial states and the noise; None for data that does not depend on a seed.
        init_distribution: Kind of :class:`~act_kit.sim.initial_states.InitialStateDistribution` from which the initial
            states are sampled; a word for the origin of derived and imported data.
        demonstrator: Kind of demonstrator; each episode names its source.
        noise: Standard deviation of the Gaussian noise on the executed action.
        steps_after_success: Number of steps recorded after the first success.
        command: Command that reproduces these bytes.
        versions: Versions of act_kit, metaworld, mujoco and numpy, and the platform.
        git_commit: Commit of the checkout that collected the dataset, or None without a checkout.
        horizon, control_hz: Horizon in steps and control frequency of the environment.
        parents: Inputs of the dataset: for each dataset, run or file its path, the command that made it, and its
            fingerprint; of imported data also the number of actions that were clipped, and of episodes that have any.
    """

    task: str
    num_wanted: int
    seed: int | None = None
    init_distribution: str
    demonstrator: str
    noise: float = 0.0
    steps_after_success: int = 0
    command: str = ""
    versions: dict[str, str]
    git_commit: str | None
    horizon: int
    control_hz: int
    parents: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_name(self.task, "task")
        texts = [self.init_distribution, self.demonstrator, self.command, self.git_commit or ""]
        texts += [*self.versions, *self.versions.values()]
        for parent in self.parents:
            texts += [parent["path"], parent["fingerprint"], parent.get("format", ""), *parent.get("notes", [])]
            counts = (parent.get("clipped_actions", 0), parent.get("clipped_episodes", 0))
            if set(map(type, counts)) != {int} or min(counts) < 0:
                raise ValueError(f"the counts of clipped actions are {counts}")
        if set(map(type, texts)) != {str}:
            raise ValueError("an attribute that must be text is of another type")
        if self.seed is not None:
            _check_integers(self, math.inf, seed=0)
        _check_integers(self, MAX_COUNT, num_wanted=0, steps_after_success=0, horizon=1, control_hz=1)
        if type(self.noise) not in (int, float) or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is {self.noise!r}, a finite number was expected")


@dataclass(frozen=True, kw_only=True)
class Committed:
    """Number of committed episodes, steps and attempts of a dataset."""

    num_episodes: int = 0
    num_steps: int = 0
    num_attempts: int = 0

    def __post_init__(self) -> None:
        _check_integers(self, MAX_COUNT, num_episodes=0, num_steps=0, num_attempts=0)

    def num_rows(self, name: str) -> int:
        """Return the number of committed rows of an array; it may have more."""
        if name.startswith("meta/attempts/"):
            return self.num_attempts
        return self.num_steps if name.startswith("data/") else self.num_episodes


def _check_integers(record: object, maximum: float, **minimum: int) -> None:
    for name, low in minimum.items():
        value = getattr(record, name)
        if type(value) is not int or not low <= value <= maximum:
            raise ValueError(f"{name} is {value!r}, an integer of at least {low} was expected")


def find_arrays(path: Path) -> list[str]:
    """Return the names of the arrays of the dataset at ``path``: the required ones, and those that exist."""
    names = []
    for name in ARRAYS:
        evidence = "meta/rand_vec" if name.startswith("meta/attempts/") else name
        if name in _REQUIRED or os.path.lexists(path / evidence / "zarr.json"):
            names.append(name)
    return names


def check_arrays(path: Path, names: Iterable[str], committed: Committed) -> None:
    """Reject arrays that are truncated, of another dtype or rank, or that zarr cannot read in bounded time and memory.

    Raises:
        DatasetError: An array is damaged.
    """
    missing: list[str] = []
    short = ""
    for name in names:
        num_rows = committed.num_rows(name)
        with as_dataset_error(f"The dataset {path} is damaged: {name} cannot be read", "collect it again"):
            array = ArrayFiles.read(path / name)
            array.check_chunks()
        if array.dtype != ARRAYS[name] or len(array.shape) != 1 + (name.rpartition("/")[2] in _VECTORS):
            raise ValueError(f"{name} holds {array.dtype} of shape {array.shape}")
        num_missing = array.count_missing(min(num_rows, array.shape[0]))
        if num_missing:
            missing.append(f"{num_missing} chunks of {name}")
        elif array.shape[0] < num_rows:
            short = f": {name} has {array.shape[0]} rows, {num_rows} were committed"
    reason = f", it lacks {', '.join(missing[:3])}" if missing else short
    if reason:
        raise DatasetError(f"The dataset {path} is truncated{reason}. Fix: copy it again, or collect it again.")


# -- files of an array -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArrayFiles:
    """The files of an array, with what its ``zarr.json`` declares; checked before zarr reads them.

    zarr blocks on pipes, and allocates as much memory as a file of a hundred bytes declares.

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
        """Read what the array in ``folder`` declares; raise an exception if act_kit writes no such declaration."""
        declared = read_json(folder / "zarr.json", max_bytes=_MAX_JSON_BYTES)
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
        return cls(folder=folder, shape=tuple(shape), dtype=dtype, chunk_rows=chunks[0], codec=codecs[1])

    def count_missing(self, num_rows: int) -> int:
        """Return how many chunks of the first ``num_rows`` rows are missing; zarr would read them silently as zeros."""
        num_chunks = math.ceil(num_rows / self.chunk_rows)
        return num_chunks - sum(number < num_chunks for number, _ in self._stored())

    def check_chunks(self) -> None:
        """Raise an exception if a chunk is not a regular file, is too large, or its header declares a wrong size."""
        num_bytes = self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        for _, file in self._stored():
            size = require_regular(file).st_size
            if size > 2 * num_bytes + 4096 or _uncompressed_bytes(file, size, self.codec) != num_bytes:
                raise ValueError(f"{file} is not a chunk of {num_bytes} bytes, compressed by {self.codec}")

    def _stored(self) -> Iterator[tuple[int, Path]]:
        """Yield the number and the file of each chunk."""
        for entry in self.folder.glob("c/*"):
            file = entry.joinpath(*["0"] * (len(self.shape) - 1))
            if entry.name.isdecimal() and len(entry.name) < 12 and os.path.lexists(file):
                yield int(entry.name), file


def _are_sizes(values: Any, minimum: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and minimum <= value <= MAX_COUNT for value in values)


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
