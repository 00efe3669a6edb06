"""Datasets on disk: a zarr v3 group in the layout of the field's replay buffers, which describes itself.

``data/<field>`` are the steps of all episodes, one after the other; ``meta/episode_ends`` says where each ends and is
written last. So a writer that is killed at any moment leaves a valid dataset: what lies beyond the last end was never
there, and the next writer drops it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from act_kit.datasets.episode import STEP_FIELDS, Attempt, Episode, Recording, dtype_of
from act_kit.errors import DatasetError
from act_kit.sim.starts import Start
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, TASKS

FORMAT = "act_kit.dataset"
VERSION = 2
_READABLE = (1, 2)
"""Before version 2 a dataset had one source, its demonstrator, and always starts."""
_CHUNK_ROWS = 1024

_ATTEMPT_FIELDS = {"rand_vec": np.float64, "num_steps": np.int64, "kept": np.bool_}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a dataset says about itself: everything that decides its bytes, and nothing that does not.

    Attributes:
        task: Meta-World task; of imported data, whatever they call theirs.
        num_wanted: Episodes asked for.
        seed: Seed of starts and noise; None of data that no seed decides.
        start_law: Kind of :class:`~act_kit.sim.starts.StartLaw` the starts were drawn from; of derived and imported
            data, where they came from, in a word.
        demonstrator: Kind of who demonstrated; each episode names its source.
        noise: Standard deviation of the Gaussian noise on the executed action.
        steps_after_success: Steps recorded after the first success.
        command: The command that makes these bytes again.
        versions: Of act_kit, metaworld, mujoco and numpy.
        git_commit: Of the checkout that collected it, if it was one.
        horizon, control_hz: The environment's.
        parents: What it was made of: for each dataset, run or file its path, what it was made by, and its fingerprint.
    """

    task: str
    num_wanted: int
    seed: int | None
    start_law: str
    demonstrator: str
    noise: float
    steps_after_success: int
    command: str
    versions: dict[str, str]
    git_commit: str | None
    horizon: int
    control_hz: int
    parents: list[dict[str, Any]] = field(default_factory=list)


class EpisodeStore:
    """Reads a dataset, and appends to one that is being collected."""

    def __init__(self, path: Path, group: zarr.Group, info: DatasetInfo) -> None:
        self.path = path
        self.info = info
        self._group = group
        self._ends = self._read("meta/episode_ends")
        self._num_attempts = len(self._read("meta/attempts/kept")) if self.has_starts else 0

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, info: DatasetInfo, like: Episode | Recording) -> EpisodeStore:
        """Make an empty dataset at ``path``, which must not exist, for episodes that hold what ``like`` does."""
        # Under another name until it is complete, so that a kill leaves a dataset or nothing.
        fresh = path.with_name(f".{path.name}.new")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(fresh, mode="w", zarr_format=3)

        def make(name: str, dtype: type, *shape: int) -> None:
            group.create_array(name, shape=(0, *shape), chunks=(_CHUNK_ROWS, *shape), dtype=dtype)

        for name, values in like.steps.items():
            make(f"data/{name}", dtype_of(name), *values.shape[1:])
        for name in ("attempt", "source", "success_step", "episode_ends"):
            make(f"meta/{name}", np.int64)
        if like.start is not None:
            dims = len(like.start.rand_vec)
            make("meta/rand_vec", np.float64, dims)
            for name, dtype in _ATTEMPT_FIELDS.items():
                make(f"meta/attempts/{name}", dtype, *((dims,) if name == "rand_vec" else ()))
        group.attrs.update({"format": FORMAT, "version": VERSION, "fingerprint": None, "sources": [], **asdict(info)})
        os.rename(fresh, path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> EpisodeStore:
        """Open the dataset at ``path`` and check that it is whole.

        Raises:
            DatasetError: Nothing is there, or something else, or another version, or a part of it is missing.
        """
        path = Path(path)
        if not path.exists():
            raise DatasetError(f"There is no dataset at {path}. Collect one: act collect --task TASK --out {path}")
        try:
            # The whole path: zarr takes a folder's name out of its keys, and "data" is in them too.
            group = zarr.open_group(path.absolute(), mode="r+" if writable else "r", zarr_format=3)
            attributes: dict[str, Any] = dict(group.attrs)
        except Exception as error:
            raise DatasetError(f"{path} is not a dataset of act_kit: no zarr v3 group is there.") from error
        if attributes.get("format") != FORMAT:
            raise DatasetError(f"{path} is a zarr group, but not a dataset of act_kit (its 'format' is not {FORMAT}).")
        if attributes.get("version") not in _READABLE:
            raise DatasetError(
                f"{path} has dataset version {attributes.get('version')}; this act_kit reads versions up to {VERSION}."
            )
        try:
            names = [f.name for f in fields(DatasetInfo) if f.name in attributes or f.default_factory is MISSING]
            info = DatasetInfo(**{name: attributes[name] for name in names})
            store = cls(path, group, info)
            store._check_whole()
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(f"The dataset {path} is damaged: {error}. Collect it again.") from error
        return store

    def _check_whole(self) -> None:
        ends = self._ends
        if len(ends) and (ends[0] <= 0 or (np.diff(ends) <= 0).any()):
            raise DatasetError(f"The dataset {self.path} is damaged: its episode ends do not grow. Collect it again.")
        for name in self.fields:
            if self._array(f"data/{name}").shape[0] < self.num_steps:
                raise DatasetError(
                    f"The dataset {self.path} is truncated: data/{name} has {self._array(f'data/{name}').shape[0]} "
                    f"steps, its episodes need {self.num_steps}. Copy it again, or collect it again."
                )
        if self.fingerprint is not None and self.missing_chunks():
            raise DatasetError(
                f"The dataset {self.path} is truncated, it lacks {', '.join(self.missing_chunks()[:3])}. "
                "Copy it again, or collect it again."
            )

    def missing_chunks(self) -> list[str]:
        """Name the arrays that lack chunks on disk, which zarr would read as zeros without a word.

        Those of the images are their own affair: a rendering that was killed may lack some.
        """
        arrays = {key: array for key, array in self._group.members(max_depth=None) if isinstance(array, zarr.Array)}
        missing = {
            key: array.nchunks - array.nchunks_initialized for key, array in arrays.items() if "image" not in key
        }
        return [f"{num} chunks of {key}" for key, num in sorted(missing.items()) if num]

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
        """Load episode ``index``; negative ones count from the end. Imported data may lack what an Episode has."""
        number = range(len(self))[index]
        first = int(self._ends[number - 1]) if number else 0
        steps = {name: np.asarray(self._array(f"data/{name}")[first : self._ends[number]]) for name in self.fields}
        attempt, source = int(self._read("meta/attempt")[number]), self.sources[number]
        start = self.starts[number] if self.has_starts else None
        if self.lacks or start is None:
            return Recording(start=start, attempt=attempt, source=source, steps=steps)
        unrecorded: dict[str, Any] = {"reward": None}
        return Episode(start=start, attempt=attempt, source=source, **unrecorded | steps)

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

    def _read(self, name: str) -> np.ndarray:
        return np.asarray(self._array(name)[:])

    @property
    def fields(self) -> tuple[str, ...]:
        """What is recorded at every step: all of ``STEP_FIELDS`` but perhaps the reward; of imported data, some."""
        return tuple(name for name in STEP_FIELDS if name in ("state", "action") or f"data/{name}" in self._group)

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
    def has_starts(self) -> bool:
        """Whether every episode's start is recorded; nobody may have recorded those of imported data."""
        return "meta/rand_vec" in self._group

    @property
    def lacks(self) -> list[str]:
        """What an :class:`~act_kit.datasets.episode.Episode` of Meta-World has and these do not."""
        lacking = [name for name in STEP_FIELDS if name != "reward" and name not in self.fields]
        return lacking if self.has_starts else ["start", *lacking]

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the content, or None while the collection is not finished."""
        value = self._group.attrs["fingerprint"]
        return None if value is None else str(value)

    @property
    def num_episodes(self) -> int:
        return len(self._ends)

    @property
    def num_steps(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

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
            DatasetError: They were not recorded (see :attr:`has_starts`).
        """
        if not self.has_starts:
            raise DatasetError(f"{self.path} was imported without the starts of its episodes, which this needs.")
        return self._read("meta/rand_vec")[: self.num_episodes]

    @property
    def recorded_starts(self) -> list[list[float]]:
        """The demonstrated starts as plain numbers; none where they were not recorded."""
        return self.rand_vecs.tolist() if self.has_starts else []

    @property
    def starts(self) -> list[Start]:
        """The demonstrated starts, one per episode."""
        return [Start.of(self.info.task, row) for row in self.rand_vecs]

    @property
    def success_steps(self) -> np.ndarray:
        """int64 (N,): the first step that succeeded in each episode."""
        return self._read("meta/success_step")[: self.num_episodes]

    def steps(self, name: str) -> np.ndarray:
        """Load one field of all steps, (T, …); see :class:`~act_kit.datasets.episode.Episode`."""
        try:
            return np.asarray(self._array(f"data/{name}")[: self.num_steps])
        except Exception as error:
            raise DatasetError(
                f"The dataset {self.path} is damaged: data/{name} cannot be read ({error}). Collect it again."
            ) from error

    @property
    def sources(self) -> list[str]:
        """Who demonstrated, of each episode."""
        if "meta/source" not in self._group:
            return [self.info.demonstrator] * self.num_episodes
        names: Any = self._group.attrs["sources"]
        return [str(names[number]) for number in self._read("meta/source")[: self.num_episodes]]

    def recordings(self) -> Iterator[Recording]:
        """Yield the episodes with what is known of them, without their images."""
        steps = {name: np.split(self.steps(name), self._ends[:-1]) for name in self.fields}
        starts: Sequence[Start | None] = self.starts if self.has_starts else [None] * self.num_episodes
        attempts, sources = self._read("meta/attempt"), self.sources
        for i, start in enumerate(starts):
            recorded = {name: values[i] for name, values in steps.items()}
            yield Recording(start=start, attempt=int(attempts[i]), source=sources[i], steps=recorded)

    def episodes(self) -> list[Episode]:
        """Load everything, episode by episode.

        Raises:
            DatasetError: Something was not recorded that episodes of Meta-World have (see :attr:`lacks`).
        """
        if self.lacks:
            mend = f" To have all of it: act collect --task {self.info.task}" if self.info.task in TASKS else ""
            raise DatasetError(f"{self.path} was imported without {', '.join(self.lacks)}, which this needs.{mend}")
        unrecorded: dict[str, Any] = {"reward": None}
        return [
            Episode(start=r.start, attempt=r.attempt, source=r.source, **unrecorded | dict(r.steps))
            for r in self.recordings()
            if r.start is not None
        ]

    def attempts(self) -> list[Attempt]:
        """Return every attempt, the failed ones too, in order; none of data without starts."""
        if not self.has_starts:
            return []
        columns = {name: self._read(f"meta/attempts/{name}") for name in _ATTEMPT_FIELDS}
        return [
            Attempt(start=Start.of(self.info.task, rand_vec), num_steps=int(num_steps), kept=bool(kept))
            for rand_vec, num_steps, kept in zip(*columns.values(), strict=True)
        ]

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, episodes: Sequence[Episode | Recording], attempts: Sequence[Attempt]) -> None:
        """Add attempts, and the episodes that came of them; all of them are there afterwards, or none.

        An append that was interrupted can be called again. Attempts are only kept beside starts.
        """
        if episodes:
            for name in self.fields:
                rows = np.concatenate([episode.steps[name] for episode in episodes])
                self._extend(f"data/{name}", rows, self.num_steps)
            if self.has_starts:
                starts = [episode.start.rand_vec for episode in episodes if episode.start is not None]
                self._extend("meta/rand_vec", np.array(starts), self.num_episodes)
            self._extend("meta/attempt", np.array([e.attempt for e in episodes]), self.num_episodes)
            if "meta/source" in self._group:
                self._extend("meta/source", self._number_sources(episodes), self.num_episodes)
            self._extend("meta/success_step", np.array([e.success_step for e in episodes]), self.num_episodes)
        columns = {
            "rand_vec": np.array([a.start.rand_vec for a in attempts]),
            "num_steps": np.array([a.num_steps for a in attempts]),
            "kept": np.array([a.kept for a in attempts]),
        }
        for name, dtype in _ATTEMPT_FIELDS.items():
            if self.has_starts:
                self._extend(f"meta/attempts/{name}", columns[name].astype(dtype), self._num_attempts)
        ends = self.num_steps + np.cumsum([len(episode) for episode in episodes], dtype=np.int64)
        self._extend("meta/episode_ends", ends, self.num_episodes)
        self._ends = np.concatenate([self._ends, ends])
        self._num_attempts += len(attempts)

    def _number_sources(self, episodes: Sequence[Episode | Recording]) -> np.ndarray:
        """Return the numbers of the episodes' sources, int64; new ones are put on the list first."""
        known: Any = self._group.attrs["sources"]
        names = list(dict.fromkeys([*known, *(episode.source for episode in episodes)]))
        if names != known:
            self._group.attrs["sources"] = names
        return np.array([names.index(episode.source) for episode in episodes])

    def _extend(self, name: str, rows: np.ndarray, at: int) -> None:
        if len(rows):
            # Chunks of nothing but zeros are written too: a missing file is then always damage.
            with zarr.config.set({"array.write_empty_chunks": True}):
                array = self._array(name)
                array.resize((at + len(rows), *array.shape[1:]))
                array[at:] = rows

    def recover(self) -> int:
        """Drop what a killed writer left beyond the last whole episode; return the number of attempts on record."""
        kept = self._read("meta/attempts/kept")
        num_attempts = min(self._array(f"meta/attempts/{name}").shape[0] for name in _ATTEMPT_FIELDS)
        beyond = np.flatnonzero(np.cumsum(kept[:num_attempts]) > self.num_episodes)
        if len(beyond):
            num_attempts = int(beyond[0])
        sizes = {f"data/{name}": self.num_steps for name in self.fields}
        per_episode = [
            name for name in ("rand_vec", "attempt", "source", "success_step") if f"meta/{name}" in self._group
        ]
        sizes |= {f"meta/{name}": self.num_episodes for name in per_episode}
        sizes |= {f"meta/attempts/{name}": num_attempts for name in _ATTEMPT_FIELDS}
        for name, size in sizes.items():
            array = self._array(name)
            array.resize((size, *array.shape[1:]))
        self._num_attempts = num_attempts
        for torn in self.path.rglob("*.partial"):
            torn.unlink()  # of zarr's atomic writes
        return num_attempts

    def finish(self) -> str:
        """Mark the collection as finished and return its fingerprint."""
        fingerprint = self.compute_fingerprint()
        self._group.attrs["fingerprint"] = fingerprint
        return fingerprint

    def compute_fingerprint(self) -> str:
        """Hash the content as it is on disk now: every step of every episode, and the starts."""
        digest = hashlib.sha256()
        for name in self.fields:
            digest.update(np.ascontiguousarray(self.steps(name)).tobytes())
        if self.has_starts:
            digest.update(self.rand_vecs.tobytes())
        digest.update(self._ends.tobytes())
        return digest.hexdigest()

    def size_bytes(self) -> int:
        """Return the size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def find_datasets(paths: Sequence[Path]) -> list[Path]:
    """Return the datasets at ``paths``, each of which is one or a folder of several."""
    found: list[Path] = []
    for path in paths:
        # What begins with a dot is half written.
        inside = [] if (path / "zarr.json").exists() else sorted(entry.parent for entry in path.glob("[!.]*/zarr.json"))
        found += inside or [path]
    return found
