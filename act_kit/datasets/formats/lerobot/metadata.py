"""Metadata of a LeRobot dataset: ``meta/info.json``, and the tables of its episodes and tasks.

==== ============================= ============================== ===================================================
     episodes                      tasks                          data and videos
==== ============================= ============================== ===================================================
v2.x ``meta/episodes.jsonl``       ``meta/tasks.jsonl``           a file per episode
v3.0 ``meta/episodes/*/*.parquet`` ``meta/tasks.parquet``         files of several episodes; the table of the episodes
                                                                  says in which file, and where in the video
==== ============================= ============================== ===================================================

The formats are described by ``src/lerobot/scripts/convert_dataset_v21_to_v30.py`` of github.com/huggingface/lerobot.
Version 2.0 differs from 2.1 only in its statistics, which are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.formats.content import some
from act_kit.datasets.formats.lerobot.parquet import ParquetFile
from act_kit.datasets.schema import MAX_COUNT
from act_kit.errors import DatasetError
from act_kit.files import read_json, read_text

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")

_MAX_EPISODES = 1_000_000
_MAX_INFO_BYTES = 16 * 2**20
_MAX_FPS = 10_000
_MAX_SECONDS = 1e7
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
"""A field of a path in ``info.json``, such as ``{episode_index:06d}``."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature: its dtype ("video", "image", "string" or that of its numbers), and the shape of a step."""

    dtype: str
    shape: tuple[int, ...]
    is_depth: bool


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """Where the frames of an episode are: a video, and the time of the first frame in it, seconds."""

    path: Path
    begin_s: float


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """An episode: its number, the sentence of its task, its number of steps, and its files."""

    index: int
    sentence: str
    length: int
    data: Path
    videos: Mapping[str, VideoPart]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of a dataset.

    Attributes:
        path: Folder of the dataset.
        version: Version of the format, one of ``VERSIONS``.
        fps: Steps per second.
        features: Features by name.
        episodes: Episodes in the order of their numbers, 0 to N - 1.
        sentences: Sentence of each task by its number.
    """

    path: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    episodes: Sequence[EpisodeEntry]
    sentences: Mapping[int, str]


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of the dataset at ``path``.

    Raises:
        DatasetError: A file is missing or damaged, the version is not supported, or the tables are inconsistent.
    """
    file = path / INFO
    with as_dataset_error(f"{file} is damaged", "copy the dataset again."):
        info = read_json(file, max_bytes=_MAX_INFO_BYTES)
        version = str(info["codebase_version"])
        if version not in VERSIONS:
            raise DatasetError(
                f"{file} has version {some([version])} of LeRobot's format: {', '.join(VERSIONS)} are read. Fix: "
                "convert it with the scripts of lerobot."
            )
        fps = float(info["fps"])
        if not 0 < fps <= _MAX_FPS:
            raise ValueError(f"fps is {fps:g}")
        num_episodes = _count(info, "total_episodes", _MAX_EPISODES)
        num_steps = _count(info, "total_frames", MAX_COUNT)
        features = {str(name): _feature(declared) for name, declared in info["features"].items()}
    videos = [name for name, feature in features.items() if feature.dtype == "video"]
    read_tables = _read_v3 if version == "v3.0" else _read_v2
    with as_dataset_error(f"{path}: the tables of episodes and tasks are damaged", "copy the dataset again."):
        rows, sentences = read_tables(path, videos)
        rows.sort(key=lambda row: int(row["episode_index"]))
        if [row["episode_index"] for row in rows] != list(range(num_episodes)):
            raise DatasetError(
                f"{path}: the table of episodes has {len(rows)} rows; the episodes 0 to {num_episodes - 1} were "
                "expected, each once."
            )
        episodes = [_episode(path, info, row, videos) for row in rows]
    total = sum(episode.length for episode in episodes)
    if total != num_steps:
        raise DatasetError(f"{path}: the episodes have {total} steps in total; {INFO} says {num_steps}.")
    return Metadata(
        path=path, version=version, fps=fps, features=features, episodes=episodes, sentences=dict(sentences)
    )


def _count(values: Mapping[str, Any], name: str, most: int, least: int = 1) -> int:
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}; an integer from {least} to {most} was expected")
    return value


def _feature(declared: Mapping[str, Any]) -> Feature:
    shape = tuple(declared["shape"])
    if not all(type(size) is int and 0 <= size <= MAX_COUNT for size in shape) or len(shape) > 5:
        raise ValueError(f"a feature has shape {str(shape)[:80]}")
    details = declared.get("info") or declared.get("video_info") or {}
    return Feature(dtype=str(declared["dtype"]), shape=shape, is_depth=bool(details.get("video.is_depth_map", False)))


# -- tables ------------------------------------------------------------------------------------------------------------

_Tables = tuple[list[dict[str, Any]], dict[int, str]]
"""Rows of the table of episodes, and the sentence of each task."""


def _read_v2(path: Path, videos: Sequence[str]) -> _Tables:
    sentences = {}
    for row in _json_lines(path / "meta" / "tasks.jsonl"):
        sentences[_count(row, "task_index", _MAX_EPISODES, 0)] = str(row["task"])
    return list(_json_lines(path / "meta" / "episodes.jsonl")), sentences


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with as_dataset_error(f"{file} is damaged", "copy the dataset again."):
        for line in filter(str.strip, read_text(file).split("\n")):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a line is {type(row).__name__}; an object was expected")
            yield row


def _read_v3(path: Path, videos: Sequence[str]) -> _Tables:
    table = ParquetFile(path / "meta" / "tasks.parquet")
    names = [name for name in table.columns if name in ("task", "__index_level_0__")]
    if len(names) != 1:
        raise DatasetError(f"{table.path} has the columns {some(table.columns)}; task and task_index were expected.")
    numbers = table.numbers("task_index", 0, table.num_rows).tolist() if table.num_rows else []
    sentences = dict(zip(numbers, map(str, table.cells(names[0], 0, table.num_rows)), strict=True))
    numeric = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        numeric += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        table = ParquetFile(file)
        num = table.num_rows
        if not num:
            continue
        columns: dict[str, list[Any]] = {name: table.numbers(name, 0, num).tolist() for name in numeric}
        columns["tasks"] = list(table.cells("tasks", 0, num))
        for i in range(num):
            rows.append({name: values[i] for name, values in columns.items()})
        if len(rows) > _MAX_EPISODES:
            raise DatasetError(f"{file}: there are more than {_MAX_EPISODES} episodes.")
    return rows, sentences


def _episode(path: Path, info: Mapping[str, Any], row: Mapping[str, Any], videos: Sequence[str]) -> EpisodeEntry:
    """Return an episode; in version 3.0 the table names its files by two numbers, in 2.x its own number does."""
    index, tasks = _count(row, "episode_index", _MAX_EPISODES, 0), row["tasks"]
    if not isinstance(tasks, list) or len(tasks) != 1 or not isinstance(tasks[0], str):
        raise DatasetError(f"{path}: episode {index} has the tasks {str(tasks)[:200]}; one task was expected.")
    is_v3 = info["codebase_version"] == "v3.0"
    chunk = 0 if is_v3 else index // _count(info, "chunks_size", MAX_COUNT)
    numbers: dict[str, int | str] = {"episode_index": index, "episode_chunk": chunk}
    parts: dict[str, VideoPart] = {}
    for key in videos:
        begin_s = 0.0
        if is_v3:
            numbers |= _file_numbers(row, f"videos/{key}/")
            begin_s = float(row[f"videos/{key}/from_timestamp"])
            if not 0 <= begin_s <= _MAX_SECONDS:
                raise ValueError(f"the video of episode {index} begins at {begin_s} s")
        parts[key] = VideoPart(path=_fill(path, info["video_path"], numbers | {"video_key": key}), begin_s=begin_s)
    if is_v3:
        numbers |= _file_numbers(row, "data/")
    data = _fill(path, info["data_path"], numbers)
    return EpisodeEntry(
        index=index, sentence=tasks[0], length=_count(row, "length", MAX_COUNT), data=data, videos=parts
    )


def _file_numbers(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: _count(row, prefix + name, MAX_COUNT, 0) for name in ("chunk_index", "file_index")}


def _fill(path: Path, template: Any, values: Mapping[str, int | str]) -> Path:
    """Return the file that a template of ``info.json`` names; it lies in the folder of the dataset.

    ``str.format`` is not used: a template could ask it for a billion digits.
    """

    def value_of(match: re.Match[str]) -> str:
        return str(values[match[1]]).zfill(int(match[2] or 0))

    name = _FIELD.sub(value_of, str(template))
    relative = PurePosixPath(name)
    if re.search(r"[{}\\\x00]", name) or relative.is_absolute() or ".." in relative.parts or len(name) > 1000:
        raise DatasetError(f"{path / INFO} names the file {some([name])}; a path in the dataset was expected.")
    return path / relative
