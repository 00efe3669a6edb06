"""Datasets on disk: a zarr v3 group in the layout of the field's replay buffers, which describes itself.

``data/<field>`` are the steps of all episodes, one after the other; ``meta/episode_ends`` says where each ends. The
attribute ``committed`` says how many there are, and is replaced in one piece after all else was written: what the
arrays hold beyond it was never there, and the next writer drops it. So a writer that is killed at any moment leaves a
valid dataset.
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
from act_kit.files import (
    check_name,
    free_beside,
    hidden_sibling,
    is_new_folder,
    quoted,
    read_json,
    restore_output,
    still_there,
)
from act_kit.rollouts.episode import STEP_FIELDS, Attempt, Episode, Recording, dtype_of
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, TASKS

FORMAT = "act_kit.dataset"
VERSION = 3
"""Since version 3 the attribute ``committed`` says what is there."""
_CHUNK_ROWS = 1024
_MAX_COUNT = 10**10
"""Of steps, episodes and the like."""

_ATTEMPT_FIELDS = {"rand_vec": np.float64, "num_steps": np.int64, "kept": np.bool_}

_WIDE = ("state", "action", "executed_action", "physics", "rand_vec")
"""Of what a row holds several numbers."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a dataset says about itself: everything that decides its bytes, and nothing that does not.

    Attributes:
        task: Meta-World task; of imported data, whatever they call theirs.
        num_wanted: Episodes asked for.
        seed: Seed of starts and noise; None of data that no seed decides.
        init_distribution: Kind of :class:`~act_kit.sim.initial_states.InitialStateDistribution` the starts were drawn from; of derived and imported
            data, where they came from, in a word.
        demonstrator: Kind of who demonstrated; each episode names its source.
        noise: Standard deviation of the Gaussian noise on the executed action.
        steps_after_success: Steps recorded after the first success.
        command: The command that makes these bytes again.
        versions: Of act_kit, metaworld, mujoco and numpy, and the platform.
        git_commit: Of the checkout that collected it, if it was one.
        horizon, control_hz: The environment's.
        parents: What it was made of: for each dataset, run or file its path, what it was made by, and its fingerprint.
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
            raise ValueError("text was expected where it says something else")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise ValueError(f"seed is {self.seed!r}, a number from 0 on was expected")
        for name, least in {"num_wanted": 0, "steps_after_success": 0, "horizon": 1, "control_hz": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= _MAX_COUNT:
                raise ValueError(f"{name} is {value!r}, a number from {least} on was expected")
        if type(self.noise) not in (int, float) or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is {self.noise!r}, a finite number was expected")


@dataclass(frozen=True, kw_only=True)
class _Committed:
    """How much of a dataset is there."""

    num_episodes: int = 0
    num_steps: int = 0
    num_attempts: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 0 <= value <= _MAX_COUNT:
                raise ValueError(f"{name} is {value!r}, a count was expected")


class EpisodeStore:
    """Reads a dataset, and appends to one that is being collected."""

    def __init__(self, path: Path, group: zarr.Group, info: DatasetInfo, committed: _Committed) -> None:
        self.path = path
        self.info = info
        self._group = group
        self._committed = committed
        self._ends = self._read("meta/episode_ends", committed.num_episodes)

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, info: DatasetInfo, like: Episode | Recording) -> EpisodeStore:
        """Make an empty dataset at ``path``, where nothing or an empty folder is, for episodes as ``like``."""
        check_name(info.task, "task")
        # Under another name until it is complete, so that a kill leaves a dataset or nothing.
        fresh = path if is_new_folder(path) else hidden_sibling(path, "new")
        group = zarr.open_group(fresh, mode="w", zarr_format=3)

        def make(name: str, dtype: type, *shape: int) -> None:
            group.create_array(name, shape=(0, *shape), chunks=(_CHUNK_ROWS, *shape), dtype=dtype)

        for name, values in like.steps.items():
            make(f"data/{name}", dtype_of(name), *values.shape[1:])
        for name in ("attempt", "source", "success_step", "episode_ends"):
            make(f"meta/{name}", np.int64)
        if like.init_state is not None:
            dims = len(like.init_state.rand_vec)
            make("meta/rand_vec", np.float64, dims)
            for name, dtype in _ATTEMPT_FIELDS.items():
                make(f"meta/attempts/{name}", dtype, *((dims,) if name == "rand_vec" else ()))
        state: dict[str, Any] = {"fingerprint": None, "committed": asdict(_Committed()), "sources": []}
        set_attributes(group, {"format": FORMAT, "version": VERSION, **state, **asdict(info)})
        if fresh != path:
            os.rename(fresh, path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> EpisodeStore:
        """Open the dataset at ``path`` and check that it is whole.

        Raises:
            DatasetError: Nothing is there, or something else, or another version, or a part of it is missing.
        """
        path = Path(path)
        restore_output(path)
        if not path.exists():
            raise DatasetError(
                f"There is no dataset at {path}. Collect one: act collect --task TASK --out {quoted(path)}"
            )
        try:
            read_json(path / "zarr.json")
            # The whole path: zarr takes a folder's name out of its keys, and "data" is in them too. What it may read
            # of arrays is in their own files, which are checked.
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            group = zarr.open_group(path.absolute(), mode=mode, zarr_format=3, use_consolidated=False)
            attributes: dict[str, Any] = dict(group.attrs)
        except Exception as error:
            raise DatasetError(f"{path} is not a dataset of act_kit: no zarr v3 group is there.") from error
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
            store._check_whole()
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(f"The dataset {path} is damaged: {error}. Collect it again.") from error
        return store

    def _check_whole(self) -> None:
        ends = self._ends
        if (np.diff(ends, prepend=0) <= 0).any() or (ends[-1] if len(ends) else 0) != self.num_steps:
            raise DatasetError(
                f"The dataset {self.path} is damaged: its episode ends do not grow to its {self.num_steps} steps. "
                "Collect it again."
            )
        names, numbers = self._group.attrs["sources"], self._read("meta/source", self.num_episodes)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"The dataset {self.path} is damaged: its sources are no names. Collect it again.")
        steps, attempts = self.success_steps, self._read("meta/attempt", self.num_episodes)
        for name, low, high in (
            ("source", numbers, len(names) - numbers),
            ("success_step", steps + 1, self.episode_lengths - steps),
            ("attempt", attempts, _MAX_COUNT - attempts),
        ):
            if (low < 0).any() or (high <= 0).any():
                raise DatasetError(
                    f"The dataset {self.path} is damaged: meta/{name} leaves its range. Collect it again."
                )

    @property
    def command_again(self) -> str:
        """The command that makes these bytes again, in a new folder beside this one."""
        out = str(free_beside(self.path))
        try:
            words = shlex.split(str(self.info.command))
        except ValueError:  # somebody's edit
            return f"{self.info.command} --out {quoted(out)}"
        if words[:3] == ["act", "data", "convert"] and len(words) > 4:  # whose output is its second argument
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
        """A dataset without episodes is a dataset."""
        return True

    def __getitem__(self, index: int) -> Episode | Recording:
        """Load episode ``index``; negative ones count from the end. Imported data may lack what an Episode has.

        Raises:
            TypeError, IndexError: It is no integer, or there is no such episode.
        """
        number = as_index(index, len(self), f"episode of {self.path}")
        first = int(self._ends[number - 1]) if number else 0
        steps = {name: np.asarray(self._array(f"data/{name}")[first : self._ends[number]]) for name in self.fields}
        attempt, source = int(np.asarray(self._array("meta/attempt")[number])), self.sources[number]
        init_state = self.init_states[number] if self.has_init_states else None
        if self.lacks or init_state is None:
            return Recording(init_state=init_state, attempt=attempt, source=source, steps=steps)
        unrecorded: dict[str, Any] = {"reward": None}
        return Episode(init_state=init_state, attempt=attempt, source=source, **unrecorded | steps)

    def __iter__(self) -> Iterator[Episode | Recording]:
        return iter(self.recordings() if self.lacks else self.episodes())

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def group(self) -> zarr.Group:
        """The zarr group, for what is kept beside the episodes."""
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
                f"The dataset {self.path} is damaged: {name} cannot be read ({error}). Collect it again."
            ) from error

    @property
    def fields(self) -> tuple[str, ...]:
        """What is recorded at every step: all of ``STEP_FIELDS`` but perhaps the reward; of imported data, some."""
        return _fields(self._group)

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The shape of one step of each field."""
        return {name: self._array(f"data/{name}").shape[1:] for name in self.fields}

    @property
    def is_of_metaworld(self) -> bool:
        """Whether states and actions are those of a task of Meta-World, as far as their widths tell."""
        widths = self.widths
        return self.info.task in TASKS and (widths["state"], widths["action"]) == ((STATE_DIM,), (ACTION_DIM,))

    @property
    def has_init_states(self) -> bool:
        """Whether every episode's start is recorded; nobody may have recorded those of imported data."""
        return "meta/rand_vec" in self._group

    @property
    def lacks(self) -> list[str]:
        """What an :class:`~act_kit.rollouts.episode.Episode` of Meta-World has and these do not."""
        lacking = [name for name in STEP_FIELDS if name != "reward" and name not in self.fields]
        return lacking if self.has_init_states else ["init_state", *lacking]

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the content, or None while the collection is not finished."""
        value = self._group.attrs["fingerprint"]
        return None if value is None else str(value)

    @property
    def num_episodes(self) -> int:
        return self._committed.num_episodes

    @property
    def num_steps(self) -> int:
        return self._committed.num_steps

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 (N,): episode i is the steps from end i-1 to end i."""
        return self._ends

    @property
    def episode_lengths(self) -> np.ndarray:
        """int64 (N,): steps of each episode."""
        return np.diff(self._ends, prepend=0)

    @property
    def rand_vecs(self) -> np.ndarray:
        """The demonstrated starts, float64 (N, D).

        Raises:
            DatasetError: They were not recorded (see :attr:`has_init_states`).
        """
        if not self.has_init_states:
            raise DatasetError(f"{self.path} was imported without the starts of its episodes, which this needs.")
        return self._read("meta/rand_vec", self.num_episodes)

    @property
    def recorded_init_states(self) -> list[list[float]]:
        """The demonstrated starts as plain numbers; none where they were not recorded."""
        return self.rand_vecs.tolist() if self.has_init_states else []

    @property
    def init_states(self) -> list[InitialState]:
        """The demonstrated starts, one per episode."""
        return [InitialState(self.info.task, tuple(row)) for row in self.rand_vecs.tolist()]

    @property
    def success_steps(self) -> np.ndarray:
        """int64 (N,): the first step that succeeded in each episode."""
        return self._read("meta/success_step", self.num_episodes)

    def steps(self, name: str) -> np.ndarray:
        """Load one field of all steps, (T, …); see :class:`~act_kit.rollouts.episode.Episode`.

        Raises:
            DatasetError: It was not recorded, or it is damaged.
        """
        if name not in self.fields:
            near = did_you_mean(name, self.fields)
            raise DatasetError(f"{self.path} has no data/{name}; there are {', '.join(self.fields)}.{near}")
        return self._read(f"data/{name}", self.num_steps)

    @property
    def sources(self) -> list[str]:
        """Who demonstrated, of each episode."""
        names: Any = self._group.attrs["sources"]
        return [str(names[number]) for number in self._read("meta/source", self.num_episodes)]

    def recordings(self) -> Iterator[Recording]:
        """Yield the episodes with what is known of them, without their images."""
        steps = {name: np.split(self.steps(name), self._ends[:-1]) for name in self.fields}
        init_states: Sequence[InitialState | None] = (
            self.init_states if self.has_init_states else [None] * self.num_episodes
        )
        attempts, sources = self._read("meta/attempt", self.num_episodes), self.sources
        for i, init_state in enumerate(init_states):
            recorded = {name: values[i] for name, values in steps.items()}
            yield Recording(init_state=init_state, attempt=int(attempts[i]), source=sources[i], steps=recorded)

    def episodes(self) -> list[Episode]:
        """Load everything, episode by episode.

        Raises:
            DatasetError: Something was not recorded that episodes of Meta-World have (see :attr:`lacks`).
        """
        if self.lacks:
            fix = f" To have all of it: act collect --task {self.info.task}" if self.info.task in TASKS else ""
            raise DatasetError(f"{self.path} was imported without {', '.join(self.lacks)}, which this needs.{fix}")
        unrecorded: dict[str, Any] = {"reward": None}
        return [
            Episode(init_state=r.init_state, attempt=r.attempt, source=r.source, **unrecorded | dict(r.steps))
            for r in self.recordings()
            if r.init_state is not None
        ]

    def attempts(self) -> list[Attempt]:
        """Return every attempt, the failed ones too, in order; none of data without starts."""
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
        """Add attempts, and the episodes that came of them; all of them are there afterwards, or none.

        An append that was interrupted can be called again. Attempts are only kept beside starts.

        Raises:
            OutputError: The dataset has been deleted meanwhile.
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
        with still_there(self.path / "zarr.json", self.path):
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
        """Raise FileNotFoundError if the dataset was deleted, whose folders zarr would make again without a word."""
        (self.path / "zarr.json").stat()

    def _extend(self, name: str, rows: np.ndarray, at: int) -> None:
        # Chunks of nothing but zeros are written too: a missing file is then always damage.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self._array(name)
            array.resize((at + len(rows), *array.shape[1:]))
            array[at:] = rows

    def recover(self) -> int:
        """Drop what a killed writer left beyond the last commit; return the number of attempts on record."""
        for name, num_rows in _sizes(self._group, self._committed).items():
            array = self._array(name)
            if array.shape[0] > num_rows:
                array[num_rows:] = 0  # so that the bytes do not tell
                array.resize((num_rows, *array.shape[1:]))
        for torn in self.path.rglob("*.partial"):
            torn.unlink()  # of zarr's atomic writes
        return self._committed.num_attempts

    def finish(self) -> str:
        """Mark the collection as finished and return its fingerprint."""
        with still_there(self.path / "zarr.json", self.path):
            self.check_there()
            fingerprint = self.compute_fingerprint()
            set_attributes(self._group, {"fingerprint": fingerprint})
        return fingerprint

    def check_content(self) -> None:
        """Read everything, before something else is made of it.

        Raises:
            DatasetError: Numbers are not finite, or those of a finished dataset are not what was written.
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
        """Hash the content as it is on disk now: every step of every episode, and the starts."""
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
    """Set attributes of a group or an array in one piece; ``attrs.update`` would write them one after the other."""
    node.attrs.put({**node.attrs.asdict(), **values})


def _fields(group: zarr.Group) -> tuple[str, ...]:
    return tuple(name for name in STEP_FIELDS if name in ("state", "action") or f"data/{name}" in group)


def _sizes(group: zarr.Group, committed: _Committed) -> dict[str, int]:
    """Return how many rows each array has, as far as they are committed; each may have more."""
    sizes = {f"data/{name}": committed.num_steps for name in _fields(group)}
    sizes |= {f"meta/{name}": committed.num_episodes for name in ("attempt", "source", "success_step", "episode_ends")}
    if "meta/rand_vec" in group:
        sizes["meta/rand_vec"] = committed.num_episodes
        sizes |= {f"meta/attempts/{name}": committed.num_attempts for name in _ATTEMPT_FIELDS}
    return sizes


def _check_files(path: Path, committed: _Committed) -> None:
    """Refuse arrays that zarr could not read in bounded time and memory, or whose numbers are of another type."""
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
        if array.dtype != kind or len(array.shape) != 1 + (name.rpartition("/")[2] in _WIDE):
            raise DatasetError(f"The dataset {path} is damaged: {name} holds {array.dtype} of shape {array.shape}.")
        num = array.count_missing(min(rows[name], array.shape[0]))
        missing += [f"{num} chunks of {name}"] if num else []
        try:
            array.check_chunks()
        except DamagedFileError as error:
            raise DatasetError(
                f"The dataset {path} is damaged: {name} cannot be read ({error}). Collect it again."
            ) from error
    if missing:
        raise DatasetError(
            f"The dataset {path} is truncated, it lacks {', '.join(missing[:3])}. Copy it again, or collect it again."
        )


def _check_sizes(path: Path, group: zarr.Group, committed: _Committed) -> None:
    for name, num_rows in _sizes(group, committed).items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        if array.shape[0] < num_rows:
            raise DatasetError(
                f"The dataset {path} is truncated: {name} has {array.shape[0]} rows, {num_rows} were committed. "
                "Copy it again, or collect it again."
            )


def find_datasets(paths: Sequence[Path]) -> list[Path]:
    """Return the datasets at ``paths``, each of which is one or a folder of several."""
    found: list[Path] = []
    for path in paths:
        restore_output(path)
        # What begins with a dot is half written.
        inside = [] if (path / "zarr.json").exists() else sorted(entry.parent for entry in path.glob("[!.]*/zarr.json"))
        found += inside or [path]
    return found
