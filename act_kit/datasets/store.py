"""Datasets on disk: a self-describing zarr v3 group in the common layout of replay buffers.

``data/<field>`` holds the steps of all episodes, one after the other; ``meta/episode_ends`` holds the end of each
episode. The attribute ``committed`` holds the number of episodes, steps and attempts, and is replaced atomically after
everything else is written. Rows of the arrays beyond it are ignored, and dropped by the next writer. So a writer that
is killed at any moment leaves a valid dataset.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from act_kit.arrays import as_index
from act_kit.datasets.array_files import ArrayFiles
from act_kit.errors import DamagedFileError, DatasetError, did_you_mean
from act_kit.files import check_name, next_free_path, quoted, read_json, require_existing
from act_kit.outputs import hidden_sibling, is_new_folder, restore_output
from act_kit.rollouts.episode import STEP_FIELDS, Attempt, Episode, Recording, dtype_of
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, TASKS

FORMAT = "act_kit.dataset"
VERSION = 3
"""Version of the format; version 3 introduced the attribute ``committed``."""
_CHUNK_ROWS = 1024
_MAX_COUNT = 10**10
"""Maximum number of steps, episodes and attempts."""

_ATTEMPT_FIELDS = {"rand_vec": np.float64, "num_steps": np.int64, "kept": np.bool_}

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
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise ValueError(f"seed is {self.seed!r}, an integer of at least 0 was expected")
        for name, least in {"num_wanted": 0, "steps_after_success": 0, "horizon": 1, "control_hz": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= _MAX_COUNT:
                raise ValueError(f"{name} is {value!r}, an integer of at least {least} was expected")
        if type(self.noise) not in (int, float) or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is {self.noise!r}, a finite number was expected")


@dataclass(frozen=True, kw_only=True)
class _Committed:
    """Number of committed episodes, steps and attempts of a dataset."""

    num_episodes: int = 0
    num_steps: int = 0
    num_attempts: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 0 <= value <= _MAX_COUNT:
                raise ValueError(f"{name} is {value!r}, a count was expected")


class EpisodeStore:
    """A dataset on disk: reads it, and appends to it while it is being collected.

    Attributes:
        path: Folder of the dataset.
        info: Metadata of the dataset.
    """

    def __init__(self, path: Path, group: zarr.Group, info: DatasetInfo, committed: _Committed) -> None:
        self.path = path
        self.info = info
        self._group = group
        self._committed = committed
        self._ends = self._read("meta/episode_ends", committed.num_episodes)

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, info: DatasetInfo, like: Episode | Recording) -> EpisodeStore:
        """Create an empty dataset for episodes with the fields of ``like``; ``path`` is free or an empty folder."""
        check_name(info.task, "task")
        # Under another name until it is complete, so that a killed process leaves a dataset or nothing.
        fresh = path if is_new_folder(path) else hidden_sibling(path, "new")
        group = zarr.open_group(fresh, mode="w", zarr_format=3)

        def create_array(name: str, dtype: type, *shape: int) -> None:
            group.create_array(name, shape=(0, *shape), chunks=(_CHUNK_ROWS, *shape), dtype=dtype)

        for name, values in like.steps.items():
            create_array(f"data/{name}", dtype_of(name), *values.shape[1:])
        for name in ("attempt", "source", "success_step", "episode_ends"):
            create_array(f"meta/{name}", np.int64)
        if like.init_state is not None:
            dims = len(like.init_state.rand_vec)
            create_array("meta/rand_vec", np.float64, dims)
            for name, dtype in _ATTEMPT_FIELDS.items():
                create_array(f"meta/attempts/{name}", dtype, *((dims,) if name == "rand_vec" else ()))
        state: dict[str, Any] = {"fingerprint": None, "committed": asdict(_Committed()), "sources": []}
        set_attributes(group, {"format": FORMAT, "version": VERSION, **state, **asdict(info)})
        if fresh != path:
            os.rename(fresh, path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> EpisodeStore:
        """Open the dataset at ``path`` and check that it is complete.

        Raises:
            DatasetError: ``path`` is missing, is not a dataset or has another version, or the dataset is damaged.
        """
        path = Path(path)
        restore_output(path)
        if not path.exists():
            raise DatasetError(f"There is no dataset at {path}. Fix: act collect --task TASK --out {quoted(path)}")
        try:
            read_json(path / "zarr.json")
            # The absolute path: zarr strips the folder's name from its keys, and they contain "data" too. Consolidated
            # metadata is ignored: only the arrays' own files are checked.
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            group = zarr.open_group(path.absolute(), mode=mode, zarr_format=3, use_consolidated=False)
            attributes: dict[str, Any] = dict(group.attrs)
        except Exception as error:
            raise DatasetError(f"{path} is not a dataset of act_kit: it is not a zarr v3 group.") from error
        if attributes.get("format") != FORMAT:
            raise DatasetError(f"{path} is a zarr group, but not a dataset of act_kit (its 'format' is not {FORMAT}).")
        if attributes.get("version") != VERSION:
            raise DatasetError(
                f"{path} has dataset version {attributes.get('version')}; this act_kit reads version {VERSION}."
            )
        try:
            info = DatasetInfo(**{field.name: attributes[field.name] for field in fields(DatasetInfo)})
            committed = _Committed(**attributes["committed"])
            _check_files(path, committed)
            _check_sizes(path, group, committed)
            store = cls(path, group, info, committed)
            store._check_meta()
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(f"The dataset {path} is damaged: {error}. Fix: collect it again.") from error
        return store

    def _check_meta(self) -> None:
        ends = self._ends
        if (np.diff(ends, prepend=0) <= 0).any() or (ends[-1] if len(ends) else 0) != self.num_steps:
            raise DatasetError(
                f"The dataset {self.path} is damaged: its episode ends do not increase up to its {self.num_steps} "
                "steps. Fix: collect it again."
            )
        names, numbers = self._group.attrs["sources"], self._read("meta/source", self.num_episodes)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"The dataset {self.path} is damaged: its sources are not text. Fix: collect it again.")
        steps, attempts = self.success_steps, self._read("meta/attempt", self.num_episodes)
        for name, low, high in (
            ("source", numbers, len(names) - numbers),
            ("success_step", steps + 1, self.episode_lengths - steps),
            ("attempt", attempts, _MAX_COUNT - attempts),
        ):
            if (low < 0).any() or (high <= 0).any():
                raise DatasetError(
                    f"The dataset {self.path} is damaged: meta/{name} is out of range. Fix: collect it again."
                )

    @property
    def reproduce_command(self) -> str:
        """Command that reproduces these bytes in a new folder next to this one."""
        out = str(next_free_path(self.path))
        try:
            words = shlex.split(str(self.info.command))
        except ValueError:  # the attribute was edited by hand
            return f"{self.info.command} --out {quoted(out)}"
        if words[:3] == ["act", "data", "convert"] and len(words) > 4:  # its output is its second argument
            words[4] = out
        else:
            words += ["--out", out]
        return shlex.join(words)

    # -- as a sequence of episodes -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "" if self.fingerprint else f" of {self.info.num_wanted}, unfinished"
        return f"EpisodeStore('{self.path}': {self.info.task}, {len(self)} episodes{state}, {self.num_steps} steps)"

    def __len__(self) -> int:
        return self.num_episodes

    def __bool__(self) -> bool:
        """Return True, also without episodes."""
        return True

    def __getitem__(self, index: int) -> Episode | Recording:
        """Load episode ``index``, negative from the end: a Recording if fields of an Episode are missing.

        Raises:
            TypeError: ``index`` is not an integer.
            IndexError: There is no such episode.
        """
        number = as_index(index, len(self), f"episode of {self.path}")
        first = int(self._ends[number - 1]) if number else 0
        steps = {name: np.asarray(self._array(f"data/{name}")[first : self._ends[number]]) for name in self.fields}
        attempt, source = int(np.asarray(self._array("meta/attempt")[number])), self.sources[number]
        init_state = self.init_states[number] if self.has_init_states else None
        if self.missing_fields or init_state is None:
            return Recording(init_state=init_state, attempt=attempt, source=source, steps=steps)
        unrecorded: dict[str, Any] = {"reward": None}
        return Episode(init_state=init_state, attempt=attempt, source=source, **unrecorded | steps)

    def __iter__(self) -> Iterator[Episode | Recording]:
        return iter(self.recordings() if self.missing_fields else self.episodes())

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def group(self) -> zarr.Group:
        """The zarr group, for data stored next to the episodes, such as images."""
        return self._group

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _read(self, name: str, num_rows: int) -> np.ndarray:
        try:
            return np.asarray(self._array(name)[:num_rows])
        except Exception as error:
            raise DatasetError(
                f"The dataset {self.path} is damaged: {name} cannot be read ({error}). Fix: collect it again."
            ) from error

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields recorded at every step.

        All of ``STEP_FIELDS``, with or without the reward; imported data may have fewer.
        """
        return _fields(self._group)

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step of each field."""
        return {name: self._array(f"data/{name}").shape[1:] for name in self.fields}

    @property
    def is_metaworld(self) -> bool:
        """True if the task is of Meta-World and states and actions have its widths."""
        widths = self.widths
        return self.info.task in TASKS and (widths["state"], widths["action"]) == ((STATE_DIM,), (ACTION_DIM,))

    @property
    def has_init_states(self) -> bool:
        """True if the initial state of every episode is recorded; imported data may lack them."""
        return "meta/rand_vec" in self._group

    @property
    def missing_fields(self) -> list[str]:
        """Names of the required fields of :class:`~act_kit.rollouts.episode.Episode` that are not recorded."""
        lacking = [name for name in STEP_FIELDS if name != "reward" and name not in self.fields]
        return lacking if self.has_init_states else ["init_state", *lacking]

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the content, or None while the collection is unfinished."""
        value = self._group.attrs["fingerprint"]
        return None if value is None else str(value)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self._committed.num_episodes

    @property
    def num_steps(self) -> int:
        """Number of steps of all episodes."""
        return self._committed.num_steps

    @property
    def episode_ends(self) -> np.ndarray:
        """End of each episode, int64 (N,): episode i has the steps from end i-1 up to end i."""
        return self._ends

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of steps of each episode, int64 (N,)."""
        return np.diff(self._ends, prepend=0)

    @property
    def rand_vecs(self) -> np.ndarray:
        """Initial states of the episodes, float64 (N, D).

        Raises:
            DatasetError: The initial states were not recorded (see :attr:`has_init_states`).
        """
        if not self.has_init_states:
            raise DatasetError(f"{self.path} was imported without initial states, which are required here.")
        return self._read("meta/rand_vec", self.num_episodes)

    @property
    def recorded_init_states(self) -> list[list[float]]:
        """Initial states of the episodes as plain numbers; empty if they were not recorded."""
        return self.rand_vecs.tolist() if self.has_init_states else []

    @property
    def init_states(self) -> list[InitialState]:
        """Initial states, one per episode."""
        return [InitialState(self.info.task, tuple(row)) for row in self.rand_vecs.tolist()]

    @property
    def success_steps(self) -> np.ndarray:
        """First step that succeeded in each episode, int64 (N,); -1 without success."""
        return self._read("meta/success_step", self.num_episodes)

    def steps(self, name: str) -> np.ndarray:
        """Load one field of all steps, (T, …); see :class:`~act_kit.rollouts.episode.Episode`.

        Raises:
            DatasetError: The field was not recorded, or is damaged.
        """
        if name not in self.fields:
            hint = did_you_mean(name, self.fields)
            raise DatasetError(f"{self.path} has no data/{name}; choose from: {', '.join(self.fields)}.{hint}")
        return self._read(f"data/{name}", self.num_steps)

    @property
    def sources(self) -> list[str]:
        """Source (demonstrator) of each episode."""
        names: Any = self._group.attrs["sources"]
        return [str(names[number]) for number in self._read("meta/source", self.num_episodes)]

    def recordings(self) -> Iterator[Recording]:
        """Yield the episodes with all recorded fields, without images."""
        steps = {name: np.split(self.steps(name), self._ends[:-1]) for name in self.fields}
        init_states: Sequence[InitialState | None] = (
            self.init_states if self.has_init_states else [None] * self.num_episodes
        )
        attempts, sources = self._read("meta/attempt", self.num_episodes), self.sources
        for i, init_state in enumerate(init_states):
            recorded = {name: values[i] for name, values in steps.items()}
            yield Recording(init_state=init_state, attempt=int(attempts[i]), source=sources[i], steps=recorded)

    def episodes(self) -> list[Episode]:
        """Load all episodes.

        Raises:
            DatasetError: A required field of Meta-World episodes was not recorded (see :attr:`lacks`).
        """
        if self.missing_fields:
            fix = f" Fix: act collect --task {self.info.task}" if self.info.task in TASKS else ""
            raise DatasetError(
                f"{self.path} was imported without {', '.join(self.missing_fields)}, which is required here.{fix}"
            )
        unrecorded: dict[str, Any] = {"reward": None}
        return [
            Episode(init_state=r.init_state, attempt=r.attempt, source=r.source, **unrecorded | dict(r.steps))
            for r in self.recordings()
            if r.init_state is not None
        ]

    def attempts(self) -> list[Attempt]:
        """Return all attempts in order, including failed ones; empty without recorded initial states."""
        if not self.has_init_states:
            return []
        columns = {name: self._read(f"meta/attempts/{name}", self._committed.num_attempts) for name in _ATTEMPT_FIELDS}
        return [
            Attempt(
                init_state=InitialState(self.info.task, tuple(rand_vec.tolist())),
                num_steps=int(num_steps),
                kept=bool(kept),
            )
            for rand_vec, num_steps, kept in zip(*columns.values(), strict=True)
        ]

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, episodes: Sequence[Episode | Recording], attempts: Sequence[Attempt]) -> None:
        """Append attempts and the episodes they produced, atomically.

        An interrupted append can be repeated. Attempts are only stored if initial states are recorded.

        Raises:
            OutputError: The dataset has been deleted in the meantime.
        """
        sources: Any = self._group.attrs["sources"]
        sources = list(dict.fromkeys([*sources, *(episode.source for episode in episodes)]))
        at = self._committed
        ends = at.num_steps + np.cumsum([len(episode) for episode in episodes], dtype=np.int64)
        committed = _Committed(
            num_episodes=at.num_episodes + len(episodes),
            num_steps=int(ends[-1]) if episodes else at.num_steps,
            num_attempts=at.num_attempts + (len(attempts) if self.has_init_states else 0),
        )
        with require_existing(self.path / "zarr.json", self.path):
            self.check_there()
            if episodes:
                for name in self.fields:
                    rows = np.concatenate([episode.steps[name] for episode in episodes])
                    self._extend(f"data/{name}", rows, at.num_steps)
                columns = {
                    "attempt": [episode.attempt for episode in episodes],
                    "source": [sources.index(episode.source) for episode in episodes],
                    "success_step": [episode.success_step for episode in episodes],
                    "episode_ends": ends,
                }
                if self.has_init_states:
                    columns["rand_vec"] = [
                        episode.init_state.rand_vec for episode in episodes if episode.init_state is not None
                    ]
                for name, values in columns.items():
                    self._extend(f"meta/{name}", np.array(values), at.num_episodes)
            if attempts and self.has_init_states:
                columns = {
                    "rand_vec": [attempt.init_state.rand_vec for attempt in attempts],
                    "num_steps": [attempt.num_steps for attempt in attempts],
                    "kept": [attempt.kept for attempt in attempts],
                }
                for name, values in columns.items():
                    self._extend(f"meta/attempts/{name}", np.array(values), at.num_attempts)
            self.check_there()
            set_attributes(self._group, {"committed": asdict(committed), "sources": sources})
        self._committed = committed
        self._ends = np.concatenate([self._ends, ends])

    def check_there(self) -> None:
        """Raise FileNotFoundError if the dataset was deleted, since zarr would silently create its folders again."""
        (self.path / "zarr.json").stat()

    def _extend(self, name: str, rows: np.ndarray, at: int) -> None:
        # Chunks of zeros are written too, so that a missing file always means damage.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self._array(name)
            array.resize((at + len(rows), *array.shape[1:]))
            array[at:] = rows

    def recover(self) -> int:
        """Drop rows that a killed writer left beyond the last commit; return the number of committed attempts."""
        for name, num_rows in _sizes(self._group, self._committed).items():
            array = self._array(name)
            if array.shape[0] > num_rows:
                array[num_rows:] = 0  # so that the bytes equal those of an uninterrupted run
                array.resize((num_rows, *array.shape[1:]))
        for partial in self.path.rglob("*.partial"):
            partial.unlink()  # temporary files of zarr's atomic writes
        return self._committed.num_attempts

    def finish(self) -> str:
        """Mark the collection as finished and return its fingerprint."""
        with require_existing(self.path / "zarr.json", self.path):
            self.check_there()
            fingerprint = self.compute_fingerprint()
            set_attributes(self._group, {"fingerprint": fingerprint})
        return fingerprint

    def check_content(self) -> None:
        """Read all fields and check that they are finite and match the fingerprint.

        Raises:
            DatasetError: Values are not finite, or a finished dataset does not match its fingerprint.
        """
        for name in self.fields:
            bad = np.flatnonzero(~np.isfinite(self.steps(name)).reshape(self.num_steps, -1).all(axis=1))
            if len(bad):
                episode = int(np.searchsorted(self._ends, bad[0], side="right"))
                raise DatasetError(
                    f"{self.path} is damaged: data/{name} is not finite at {len(bad)} steps, the first of them in "
                    f"episode {episode}. Fix: collect it again."
                )
        if self.fingerprint not in (None, self.compute_fingerprint()):
            raise DatasetError(
                f"{self.path} does not match its fingerprint: it was changed or damaged since it was finished. "
                "Fix: copy it again, or collect it again."
            )

    def compute_fingerprint(self) -> str:
        """Hash the current content on disk: all fields of all steps, the initial states and the episode ends."""
        digest = hashlib.sha256()
        for name in self.fields:
            digest.update(np.ascontiguousarray(self.steps(name)).tobytes())
        if self.has_init_states:
            digest.update(self.rand_vecs.tobytes())
        digest.update(self._ends.tobytes())
        return digest.hexdigest()

    def size_bytes(self) -> int:
        """Return the size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def set_attributes(node: zarr.Group | zarr.Array[Any], values: Mapping[str, Any]) -> None:
    """Set attributes of a group or an array atomically; ``attrs.update`` would write them one by one."""
    node.attrs.put({**node.attrs.asdict(), **values})


def _fields(group: zarr.Group) -> tuple[str, ...]:
    return tuple(name for name in STEP_FIELDS if name in ("state", "action") or f"data/{name}" in group)


def _sizes(group: zarr.Group, committed: _Committed) -> dict[str, int]:
    """Return the number of committed rows of each array; an array may have more."""
    sizes = {f"data/{name}": committed.num_steps for name in _fields(group)}
    sizes |= {f"meta/{name}": committed.num_episodes for name in ("attempt", "source", "success_step", "episode_ends")}
    if "meta/rand_vec" in group:
        sizes["meta/rand_vec"] = committed.num_episodes
        sizes |= {f"meta/attempts/{name}": committed.num_attempts for name in _ATTEMPT_FIELDS}
    return sizes


def _check_files(path: Path, committed: _Committed) -> None:
    """Reject arrays that zarr cannot read in bounded time and memory, or that have another dtype or rank."""
    types: dict[str, Any] = {f"data/{name}": dtype_of(name) for name in STEP_FIELDS}
    types |= {f"meta/{name}": np.int64 for name in ("attempt", "source", "success_step", "episode_ends")}
    types |= {"meta/rand_vec": np.float64} | {f"meta/attempts/{name}": kind for name, kind in _ATTEMPT_FIELDS.items()}
    rows = dict.fromkeys(types, committed.num_episodes)
    rows |= {name: committed.num_steps for name in types if name.startswith("data/")}
    rows |= {name: committed.num_attempts for name in types if name.startswith("meta/attempts/")}
    missing: list[str] = []
    for name, kind in sorted(types.items()):
        if not os.path.lexists(path / name / "zarr.json"):
            continue
        array = ArrayFiles.read(path / name)
        if array.dtype != kind or len(array.shape) != 1 + (name.rpartition("/")[2] in _VECTORS):
            raise DatasetError(f"The dataset {path} is damaged: {name} holds {array.dtype} of shape {array.shape}.")
        num = array.count_missing(min(rows[name], array.shape[0]))
        missing += [f"{num} chunks of {name}"] if num else []
        try:
            array.check_chunks()
        except DamagedFileError as error:
            raise DatasetError(
                f"The dataset {path} is damaged: {name} cannot be read ({error}). Fix: collect it again."
            ) from error
    if missing:
        raise DatasetError(
            f"The dataset {path} is truncated, it lacks {', '.join(missing[:3])}. Fix: copy it again, or collect it "
            "again."
        )


def _check_sizes(path: Path, group: zarr.Group, committed: _Committed) -> None:
    for name, num_rows in _sizes(group, committed).items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        if array.shape[0] < num_rows:
            raise DatasetError(
                f"The dataset {path} is truncated: {name} has {array.shape[0]} rows, {num_rows} were committed. "
                "Fix: copy it again, or collect it again."
            )


def find_datasets(paths: Sequence[Path]) -> list[Path]:
    """Return the datasets at ``paths``; each path is a dataset or a folder of datasets."""
    found: list[Path] = []
    for path in paths:
        restore_output(path)
        # Folders whose names begin with a dot are incomplete.
        inside = [] if (path / "zarr.json").exists() else sorted(entry.parent for entry in path.glob("[!.]*/zarr.json"))
        found += inside or [path]
    return found
