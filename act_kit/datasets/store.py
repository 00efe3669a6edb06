"""Datasets on disk: a self-describing zarr v3 group in the common layout of replay buffers.

``data/<field>`` holds the steps of all episodes, one after the other; ``meta/episode_ends`` holds the end of each
episode. The attribute ``committed`` holds the number of episodes, steps and attempts, and is replaced atomically after
everything else is written. Rows of the arrays beyond it are ignored, and dropped by the next writer. So a writer that
is killed at any moment leaves a valid dataset.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from act_kit import files, outputs
from act_kit.arrays import as_index
from act_kit.datasets import schema
from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.schema import Committed, DatasetInfo
from act_kit.errors import DatasetError, did_you_mean
from act_kit.files import quoted
from act_kit.rollouts.episode import STEP_FIELDS, AttemptRecord, Episode
from act_kit.sim.initial_states import InitialState, stack
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, TASKS

FORMAT = "act_kit.dataset"
VERSION = 3
"""Version of the format; version 3 introduced the attribute ``committed``."""
_CHUNK_ROWS = 1024


class EpisodeStore:
    """A dataset on disk: reads it, and appends to it while it is being collected.

    Attributes:
        path: Folder of the dataset.
        info: Metadata of the dataset.
        group: The zarr group, for data stored next to the episodes, such as images.
        fields: Names of the fields recorded at every step: all of ``STEP_FIELDS``, with or without the reward; imported
            data may have fewer.
        has_init_states: True if the initial state of every episode is recorded; imported data may lack them.
        episode_ends: End of each episode, int64 (N,): episode i has the steps from end i-1 up to end i.
    """

    def __init__(self, path: Path, group: zarr.Group, info: DatasetInfo, committed: Committed) -> None:
        self.path = path
        self.info = info
        self.group = group
        self._committed = committed
        self._arrays = schema.find_arrays(path)
        self.fields = tuple(name for name in STEP_FIELDS if f"data/{name}" in self._arrays)
        self.has_init_states = "meta/rand_vec" in self._arrays
        schema.check_arrays(path, self._arrays, committed)
        self.episode_ends = self._read("meta/episode_ends")
        self._check_meta()

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, info: DatasetInfo, like: Episode) -> EpisodeStore:
        """Create an empty dataset for episodes with the fields of ``like``; ``path`` is free or an empty folder."""
        # Under another name until it is complete, so that a killed process leaves a dataset or nothing.
        fresh = path if outputs.is_new_folder(path) else outputs.hidden_sibling(path, "new")
        group = zarr.open_group(fresh, mode="w", zarr_format=3)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, values in like.steps.items():
            shapes[f"data/{name}"] = values.shape[1:]
        shapes |= dict.fromkeys(schema.EPISODE_ARRAYS, ())
        if like.init_state is not None:
            rand_vec = (len(like.init_state.rand_vec),)
            shapes |= {"meta/rand_vec": rand_vec, "meta/attempts/rand_vec": rand_vec}
            shapes |= {"meta/attempts/num_steps": (), "meta/attempts/kept": ()}
        for name, shape in shapes.items():
            group.create_array(name, shape=(0, *shape), chunks=(_CHUNK_ROWS, *shape), dtype=schema.ARRAYS[name])
        state: dict[str, Any] = {"fingerprint": None, "committed": asdict(Committed()), "sources": []}
        set_attributes(group, {"format": FORMAT, "version": VERSION, **state, **asdict(info)})
        if fresh != path:
            os.rename(fresh, os.path.realpath(path))  # a link to a folder stays a link
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> EpisodeStore:
        """Open the dataset at ``path`` and check that it is complete.

        Raises:
            DatasetError: ``path`` is missing, is not a dataset or has another version, or the dataset is damaged.
        """
        path = Path(path)
        outputs.restore_output(path)
        if not path.exists():
            raise DatasetError(f"There is no dataset at {path}. Fix: act collect --task TASK --out {quoted(path)}")
        try:
            files.read_json(path / "zarr.json")
            # The absolute path: zarr strips the folder's name from its keys, and they contain "data" too. Consolidated
            # metadata is ignored: only the arrays' own files are checked.
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            group = zarr.open_group(path.absolute(), mode=mode, zarr_format=3, use_consolidated=False)
            attributes: dict[str, Any] = dict(group.attrs)
        except Exception as error:
            raise DatasetError(f"{path} is not a dataset of act_kit: it is not a zarr v3 group.") from error
        if attributes.get("format") != FORMAT:
            raise DatasetError(f"{path} is a zarr group, but not a dataset of act_kit (its 'format' is not {FORMAT}).")
        version = attributes.get("version")
        if version != VERSION:
            raise DatasetError(f"{path} has dataset version {version}; this act_kit reads version {VERSION}.")
        with as_dataset_error(f"The dataset {path} is damaged", "collect it again"):
            info = DatasetInfo(**{field.name: attributes[field.name] for field in fields(DatasetInfo)})
            return cls(path, group, info, Committed(**attributes["committed"]))

    def _check_meta(self) -> None:
        last = self.episode_ends[-1] if len(self) else 0
        if (self.episode_lengths <= 0).any() or last != self.num_steps:
            raise ValueError(f"its episode ends do not increase up to its {self.num_steps} steps")
        names: Any = self.group.attrs["sources"]
        if not isinstance(names, list) or not set(map(type, names)) <= {str}:
            raise ValueError("its sources are not text")
        for name, low, end in (
            ("source", 0, len(names)),
            ("success_step", -1, self.episode_lengths),
            ("attempt", 0, schema.MAX_COUNT),
        ):
            numbers = self._read(f"meta/{name}")
            if (numbers < low).any() or (numbers >= end).any():
                raise ValueError(f"meta/{name} is out of range")

    @property
    def reproduce_command(self) -> str:
        """Command that reproduces these bytes in a new folder next to this one."""
        out = str(files.next_free_path(self.path))
        try:
            words = shlex.split(self.info.command)
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

    def __getitem__(self, index: int) -> Episode:
        """Load episode ``index``, negative from the end.

        Raises:
            TypeError: ``index`` is not an integer.
            IndexError: There is no such episode.
        """
        number = as_index(index, len(self), f"episode of {self.path}")
        end = self.episode_ends[number]
        first = end - self.episode_lengths[number]
        steps: dict[str, Any] = {name: np.asarray(self._array(f"data/{name}")[first:end]) for name in self.fields}
        attempt, source = int(self._read("meta/attempt")[number]), self.sources[number]
        init_state = self.init_states[number] if self.has_init_states else None
        return Episode(init_state=init_state, attempt=attempt, source=source, **steps)

    def __iter__(self) -> Iterator[Episode]:
        return self.iter_episodes()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _array(self, name: str) -> zarr.Array[Any]:
        with as_dataset_error(f"The dataset {self.path} is damaged: {name} cannot be read", "collect it again"):
            array = self.group[name]
            assert isinstance(array, zarr.Array), "not an array"
            return array

    def _read(self, name: str) -> np.ndarray:
        with as_dataset_error(f"The dataset {self.path} is damaged: {name} cannot be read", "collect it again"):
            return np.asarray(self._array(name)[: self._committed.num_rows(name)])

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
    def missing_fields(self) -> list[str]:
        """Names of the required fields of :class:`~act_kit.rollouts.episode.Episode` that are not recorded."""
        lacking = [name for name in STEP_FIELDS if name != "reward" and name not in self.fields]
        return lacking if self.has_init_states else ["init_state", *lacking]

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the content, or None while the collection is unfinished."""
        value = self.group.attrs["fingerprint"]
        return None if value is None else str(value)

    @property
    def content_fingerprint(self) -> str:
        """SHA-256 of the content; it is computed while the collection is unfinished."""
        return self.fingerprint or self.compute_fingerprint()

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self._committed.num_episodes

    @property
    def num_steps(self) -> int:
        """Number of steps of all episodes."""
        return self._committed.num_steps

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of steps of each episode, int64 (N,)."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def rand_vecs(self) -> np.ndarray:
        """Initial states of the episodes, float64 (N, D).

        Raises:
            DatasetError: The initial states were not recorded (see :attr:`has_init_states`).
        """
        if not self.has_init_states:
            raise DatasetError(f"{self.path} was imported without initial states, which are required here.")
        return self._read("meta/rand_vec")

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
        return self._read("meta/success_step")

    def steps(self, name: str) -> np.ndarray:
        """Load one field of all steps, (T, …); see :class:`~act_kit.rollouts.episode.Episode`.

        Raises:
            DatasetError: The field was not recorded, or is damaged.
        """
        if name not in self.fields:
            hint = did_you_mean(name, self.fields)
            raise DatasetError(f"{self.path} has no data/{name}; choose from: {', '.join(self.fields)}.{hint}")
        return self._read(f"data/{name}")

    def steps_by_episode(self, name: str) -> list[np.ndarray]:
        """Load one field of all steps, as one array (T, …) per episode; see :meth:`steps`."""
        return np.split(self.steps(name), self.episode_ends)[:-1]

    @property
    def sources(self) -> list[str]:
        """Source (demonstrator) of each episode."""
        names: Any = self.group.attrs["sources"]
        sources: list[str] = np.array(names, dtype=object)[self._read("meta/source")].tolist()
        return sources

    def iter_episodes(self, fields: Sequence[str] | None = None) -> Iterator[Episode]:
        """Yield the episodes without images, with some of the recorded fields, or with all of them."""
        steps = {name: self.steps_by_episode(name) for name in (self.fields if fields is None else fields)}
        init_states = self.init_states if self.has_init_states else [None] * self.num_episodes
        attempts, sources = self._read("meta/attempt").tolist(), self.sources
        for i, init_state in enumerate(init_states):
            recorded: dict[str, Any] = {}
            for name, values in steps.items():
                recorded[name] = values[i]
            yield Episode(init_state=init_state, attempt=attempts[i], source=sources[i], **recorded)

    def episodes(self) -> list[Episode]:
        """Load all episodes.

        Raises:
            DatasetError: A required field of Meta-World episodes was not recorded (see :attr:`missing_fields`).
        """
        if self.missing_fields:
            fix = f" Fix: act collect --task {self.info.task}" if self.info.task in TASKS else ""
            lacking = ", ".join(self.missing_fields)
            raise DatasetError(f"{self.path} was imported without {lacking}, which is required here.{fix}")
        return list(self.iter_episodes())

    def attempts(self) -> list[AttemptRecord]:
        """Return all attempts in order, including failed ones; empty without recorded initial states."""
        if not self.has_init_states:
            return []
        rand_vecs = self._read("meta/attempts/rand_vec").tolist()
        num_steps, kept = self._read("meta/attempts/num_steps").tolist(), self._read("meta/attempts/kept").tolist()
        attempts = []
        for i, rand_vec in enumerate(rand_vecs):
            init_state = InitialState(self.info.task, tuple(rand_vec))
            attempts.append(AttemptRecord(init_state=init_state, num_steps=num_steps[i], kept=kept[i]))
        return attempts

    @property
    def failed_rand_vecs(self) -> np.ndarray:
        """Initial states of the attempts that were not kept, float64 (F, D); F = 0 if no attempt is recorded."""
        return stack([attempt.init_state for attempt in self.attempts() if not attempt.kept])

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, episodes: Sequence[Episode], attempts: Sequence[AttemptRecord]) -> None:
        """Append attempts and the episodes they produced, atomically.

        An interrupted append can be repeated. Attempts are only stored if initial states are recorded.

        Raises:
            OutputError: The dataset has been deleted in the meantime.
        """
        sources: Any = self.group.attrs["sources"]
        rows: dict[str, list[Any]] = defaultdict(list)
        at, num_steps = self._committed, self._committed.num_steps
        for episode in episodes:
            steps = episode.steps
            for name in self.fields:
                rows[f"data/{name}"].append(steps[name])
            num_steps += len(episode)
            sources = list(dict.fromkeys([*sources, episode.source]))
            rows["meta/attempt"].append(episode.attempt)
            rows["meta/source"].append(sources.index(episode.source))
            rows["meta/success_step"].append(-1 if episode.success_step is None else episode.success_step)
            rows["meta/episode_ends"].append(num_steps)
            if self.has_init_states and episode.init_state is not None:
                rows["meta/rand_vec"].append(episode.init_state.rand_vec)
        attempts = attempts if self.has_init_states else []
        for attempt in attempts:
            rows["meta/attempts/rand_vec"].append(attempt.init_state.rand_vec)
            rows["meta/attempts/num_steps"].append(attempt.num_steps)
            rows["meta/attempts/kept"].append(attempt.kept)
        committed = Committed(
            num_episodes=at.num_episodes + len(episodes),
            num_steps=num_steps,
            num_attempts=at.num_attempts + len(attempts),
        )
        with files.require_existing(self.path / "zarr.json", self.path):
            self.check_there()
            for name, values in rows.items():
                whole = np.concatenate(values) if name.startswith("data/") else np.array(values)
                self._extend(name, whole, at.num_rows(name))
            self.check_there()
            set_attributes(self.group, {"committed": asdict(committed), "sources": sources})
        self._committed = committed
        self.episode_ends = self._read("meta/episode_ends")

    def _extend(self, name: str, rows: np.ndarray, at: int) -> None:
        extend(self.group, name, at, rows)

    def check_there(self) -> None:
        """Raise FileNotFoundError if the dataset was deleted, since zarr would silently create its folders again."""
        (self.path / "zarr.json").stat()

    def recover(self) -> None:
        """Drop rows that a killed writer left beyond the last commit."""
        with _chunks_of_zeros_written():
            for name in self._arrays:
                array, num_rows = self._array(name), self._committed.num_rows(name)
                if array.shape[0] > num_rows:
                    array[num_rows:] = 0  # so that the bytes equal those of an uninterrupted run
                    array.resize((num_rows, *array.shape[1:]))
        for partial in self.path.rglob("*.partial"):
            partial.unlink()  # temporary files of zarr's atomic writes

    def finish(self) -> str:
        """Mark the collection as finished and return its fingerprint."""
        with files.require_existing(self.path / "zarr.json", self.path):
            self.check_there()
            fingerprint = self.compute_fingerprint()
            set_attributes(self.group, {"fingerprint": fingerprint})
        return fingerprint

    def check_content(self) -> None:
        """Read all fields and check that they are finite and match the fingerprint.

        Raises:
            DatasetError: Values are not finite, or a finished dataset does not match its fingerprint.
        """
        for name in self.fields:
            values = self.steps(name)
            bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
            if len(bad):
                episode = int(np.searchsorted(self.episode_ends, bad[0], side="right"))
                where = f"not finite at {len(bad)} steps, first in episode {episode}"
                raise DatasetError(f"{self.path} is damaged: data/{name} is {where}. Fix: collect it again.")
        if self.fingerprint not in (None, self.compute_fingerprint()):
            fix = "copy it again, or collect it again."
            raise DatasetError(f"{self.path} does not match its fingerprint: it was changed or damaged. Fix: {fix}")

    def compute_fingerprint(self) -> str:
        """Hash the current content on disk: all fields of all steps, the initial states and the episode ends."""
        digest = hashlib.sha256()
        for name in self.fields:
            digest.update(np.ascontiguousarray(self.steps(name)).tobytes())
        if self.has_init_states:
            digest.update(self.rand_vecs.tobytes())
        digest.update(self.episode_ends.tobytes())
        return digest.hexdigest()

    def size_bytes(self) -> int:
        """Return the size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def set_attributes(node: zarr.Group | zarr.Array[Any], values: Mapping[str, Any]) -> None:
    """Set attributes of a group or an array atomically; ``attrs.update`` would write them one by one."""
    node.attrs.put({**node.attrs.asdict(), **values})


def _chunks_of_zeros_written() -> AbstractContextManager[object]:
    """Return a context in which opened arrays also store chunks of zeros: a missing file always means damage."""
    context: AbstractContextManager[object] = zarr.config.set({"array.write_empty_chunks": True})
    return context


def extend(group: zarr.Group, name: str, num_rows: int, rows: np.ndarray) -> zarr.Array[Any]:
    """Replace everything after the first ``num_rows`` rows of an array, and return the array."""
    with _chunks_of_zeros_written():
        array = group[name]
        assert isinstance(array, zarr.Array)
        array.resize((num_rows + len(rows), *array.shape[1:]))
        array[num_rows:] = rows
    return array


def tasks_of(stores: Iterable[EpisodeStore]) -> tuple[str, ...]:
    """Return the tasks of datasets, each once, in order of appearance."""
    return tuple(dict.fromkeys(store.info.task for store in stores))


def find_datasets(paths: Sequence[Path]) -> list[Path]:
    """Return the datasets at ``paths``; each path is a dataset or a folder of datasets."""
    found: list[Path] = []
    for path in paths:
        outputs.restore_output(path)
        # Folders whose names begin with a dot are incomplete.
        inside = [] if (path / "zarr.json").exists() else sorted(entry.parent for entry in path.glob("[!.]*/zarr.json"))
        found += inside or [path]
    return found
