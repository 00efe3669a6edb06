"""The steps of a LeRobot dataset: where each episode is, and its numbers and frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from act_kit.datasets.formats.lerobot.metadata import EpisodeEntry, Metadata
from act_kit.datasets.formats.lerobot.parquet import ParquetFile
from act_kit.datasets.formats.lerobot.video import decode_images, decode_video
from act_kit.errors import DatasetError

_FIX = "Fix: copy the dataset again."
_COUNTERS = ("episode_index", "frame_index", "index", "task_index")


class Data:
    """The Parquet files and videos of a dataset, of which one Parquet file is open at a time.

    The first time that a file is opened, its index columns are compared with the table of the episodes.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._episodes: defaultdict[Path, list[EpisodeEntry]] = defaultdict(list)
        for episode in metadata.episodes:
            self._episodes[episode.data].append(episode)
        self._first_rows: dict[int, int] = {}
        self._open: ParquetFile | None = None

    def numbers(self, episode: EpisodeEntry, names: Sequence[str], num_rows: int | None = None) -> np.ndarray:
        """Read vectors or scalars of an episode side by side, (T, D).

        Raises:
            DatasetError: The file is missing, damaged or inconsistent.
        """
        file, begin = self._locate(episode)
        num = episode.length if num_rows is None else num_rows
        parts: list[np.ndarray] = []
        for name in names:
            values = file.numbers(name, begin, begin + num)
            shape = self._metadata.features[name].shape
            if values.shape != (num, *shape) and (values.shape, shape) not in (((num,), (1,)), ((num, 1), ())):
                found = f"shape {values.shape[1:]} per step; info.json says {shape}"
                raise DatasetError(f"{file.path}: {name} has {found}. {_FIX}")
            parts.append(values.reshape(num, -1))
        return np.concatenate(parts, axis=1)

    def frames(self, episode: EpisodeEntry, name: str, shape: tuple[int, int, int, int]) -> np.ndarray:
        """Read the frames of a camera of an episode, uint8 of ``shape``, (T, H, W, 3).

        Raises:
            DatasetError: A file is missing or damaged, or frames are missing or of another size.
        """
        if name in episode.videos:
            part = episode.videos[name]
            return decode_video(part.path, part.begin_s, self._metadata.fps, shape)
        file, begin = self._locate(episode)
        return decode_images(file.cells(name, begin, begin + shape[0]), f"{file.path}, {name}", shape)

    def _locate(self, episode: EpisodeEntry) -> tuple[ParquetFile, int]:
        """Return the opened file of an episode, and its first row."""
        if self._open is None or self._open.path != episode.data:
            self._open = ParquetFile(episode.data)
            if episode.index not in self._first_rows:
                self._first_rows |= self._index(self._open)
        return self._open, self._first_rows[episode.index]

    def _index(self, file: ParquetFile) -> dict[int, int]:
        """Return the first row of each episode in a file, after a comparison with the table of the episodes."""
        episodes = {episode.index: episode for episode in self._episodes[file.path]}
        num = sum(episode.length for episode in episodes.values())
        if file.num_rows != num:
            raise DatasetError(f"{file.path} has {file.num_rows} rows; its {len(episodes)} episodes have {num}. {_FIX}")
        columns: dict[str, np.ndarray] = {}
        for name in (*_COUNTERS, "timestamp"):
            columns[name] = file.numbers(name, 0, num).reshape(num, -1)
            if columns[name].shape[1] != 1 or (name in _COUNTERS and columns[name].dtype.kind not in "iu"):
                raise DatasetError(f"{file.path}: {name} has no single number in each row. {_FIX}")
            columns[name] = columns[name][:, 0]
        numbers = columns["episode_index"]
        bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), num]
        first_rows: dict[int, int] = {}
        for begin, end in pairwise(bounds):
            where = f"{file.path}: rows {begin} to {end - 1}"
            episode = episodes.pop(int(numbers[begin]), None)
            if episode is None or end - begin != episode.length:
                raise DatasetError(
                    f"{where} are of episode {numbers[begin]}; the table of the episodes says otherwise. {_FIX}"
                )
            problem = self._find_problem(episode, {name: values[begin:end] for name, values in columns.items()})
            if problem:
                raise DatasetError(f"{where}, episode {episode.index}: {problem}. {_FIX}")
            first_rows[episode.index] = begin
        return first_rows

    def _find_problem(self, episode: EpisodeEntry, rows: Mapping[str, np.ndarray]) -> str:
        """Return what is wrong in the index columns of an episode, or ""."""
        expected, fps = np.arange(episode.length), self._metadata.fps
        if not np.array_equal(rows["frame_index"], expected):
            return "frame_index does not count from 0"
        if (np.diff(rows["index"]) != 1).any():
            return "index does not count by one"
        if not (np.abs(rows["timestamp"] - expected / fps) <= 0.5 / fps).all():
            return f"the timestamps are not those of {fps:g} steps a second"
        for number in np.unique(rows["task_index"]).tolist():
            if self._metadata.sentences.get(number) != episode.sentence:
                return f"task_index is {number}, which is not that of the episode's task"
        return ""
