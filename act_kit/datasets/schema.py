"""What the folder of a dataset contains: its metadata, and the dtype, rank and number of rows of each array."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.array_files import ArrayFiles
from act_kit.errors import DamagedFileError, DatasetError
from act_kit.files import check_name
from act_kit.rollouts.episode import STEP_FIELDS, dtype_of

MAX_COUNT = 10**10
"""Maximum number of steps, episodes and attempts."""

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
            fingerprint.
    """

    task: str
    num_wanted: int
    seed: int | None
    init_distribution: str
    demonstrator: str
    noise: float
    steps_after_success: int
    command: str
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
        if not all(isinstance(text, str) for text in texts):
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
        try:
            array = ArrayFiles.read(path / name)
            array.check_chunks()
        except (DamagedFileError, OSError) as error:
            raise damaged(path, f"{name} cannot be read ({error})") from error
        if array.dtype != ARRAYS[name] or len(array.shape) != 1 + (name.rpartition("/")[2] in _VECTORS):
            raise damaged(path, f"{name} holds {array.dtype} of shape {array.shape}")
        num_missing = array.count_missing(min(num_rows, array.shape[0]))
        if num_missing:
            missing.append(f"{num_missing} chunks of {name}")
        elif array.shape[0] < num_rows:
            short = f": {name} has {array.shape[0]} rows, {num_rows} were committed"
    reason = f", it lacks {', '.join(missing[:3])}" if missing else short
    if reason:
        raise DatasetError(f"The dataset {path} is truncated{reason}. Fix: copy it again, or collect it again.")


def damaged(path: Path, reason: str) -> DatasetError:
    """Return the error of a dataset whose content is inconsistent or cannot be read."""
    return DatasetError(f"The dataset {path} is damaged: {reason}. Fix: collect it again.")
