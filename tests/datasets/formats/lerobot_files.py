"""LeRobot datasets of versions 2.1 and 3.0, written from the definition of the formats with PyArrow alone.

The layout is that of ``convert_dataset_v21_to_v30.py`` of github.com/huggingface/lerobot; the features are those of the
public datasets of Meta-World (``lerobot/metaworld_mt50``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.files import write_mp4

FPS = 80
Version = Literal["v2.1", "v3.0"]


@dataclass
class Steps:
    """One episode: its task, arrays (T, D) or (T,) by feature, and frames, uint8 (T, H, W, 3), by feature."""

    task: str
    arrays: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)


def steps_of(store: EpisodeStore, task: str = "", cameras: Sequence[str] = ()) -> list[Steps]:
    """Return the episodes of a dataset as the public datasets of Meta-World store them."""
    episodes = []
    for index, episode in enumerate(store.iter_episodes()):
        state = episode.state.astype(np.float32)
        arrays = {
            "observation.state": state[:, :4],
            "observation.environment_state": state,
            "action": episode.action,
            "next.reward": np.zeros(len(state), np.float32),
            "next.success": episode.success,
            "task_id": np.full(len(state), 38, np.int16),
        }
        frames = {f"observation.images.{camera}": ImageStore(store, camera).episode(index) for camera in cameras}
        episodes.append(Steps(task or store.info.task, arrays, frames))
    return episodes


def write(
    path: Path, episodes: Sequence[Steps], version: Version = "v3.0", *, images: str = "video", per_file: int = 2
) -> None:
    """Write a dataset; ``images`` is "video" or "image", and a file of version 3.0 has ``per_file`` episodes."""
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    per_file = per_file if version == "v3.0" else 1
    rows: list[dict[str, Any]] = []
    begin = 0
    for first in range(0, len(episodes), per_file):
        tables = []
        begins_s = 0.0
        number = first // per_file
        shard = episodes[first : first + per_file]
        for index, episode in enumerate(shard, start=first):
            num = len(episode.arrays["action"])
            columns = {name: list_array(values) for name, values in episode.arrays.items()}
            for key, frames in episode.frames.items() if images == "image" else ():
                columns[key] = png_array(frames)
            counters = {"frame_index": np.arange(num), "episode_index": np.full(num, index)}
            counters |= {"index": begin + np.arange(num), "task_index": np.full(num, tasks.index(episode.task))}
            columns |= {"timestamp": pa.array((np.arange(num) / FPS).astype(np.float32))}
            tables.append(pa.table(columns | {name: pa.array(values) for name, values in counters.items()}))
            row = {"episode_index": index, "tasks": [episode.task], "length": num}
            row |= {"data/chunk_index": 0, "data/file_index": number, "dataset_from_index": begin}
            for key in episode.frames if images == "video" else ():
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": number}
                row |= {f"videos/{key}/from_timestamp": begins_s, f"videos/{key}/to_timestamp": begins_s + num / FPS}
            rows.append(row)
            begin, begins_s = begin + num, begins_s + num / FPS
        file = path / (f"data/chunk-000/file-{number:03d}.parquet" if version == "v3.0" else v2_name("data", first))
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), file, row_group_size=50)
        for key in shard[0].frames if images == "video" else ():
            name = f"videos/{key}/chunk-000/file-{number:03d}.mp4" if version == "v3.0" else v2_name(key, first)
            frames = np.concatenate([episode.frames[key] for episode in shard])
            write_mp4(path / name, frames, FPS, quality=None, pixelformat="yuv420p", macro_block_size=1)
    write_tables(path, rows, tasks, version)
    write_info(path, episodes, version, images)


def v2_name(key: str, index: int) -> str:
    """Return the file of an episode in version 2.1: of its steps, or of a camera."""
    if key == "data":
        return f"data/chunk-000/episode_{index:06d}.parquet"
    return f"videos/chunk-000/{key}/episode_{index:06d}.mp4"


def list_array(values: np.ndarray) -> pa.Array:
    """Return a column of numbers, or of lists of them."""
    return pa.array(values) if values.ndim == 1 else pa.array(list(values), pa.list_(pa.from_numpy_dtype(values.dtype)))


def png_array(frames: np.ndarray) -> pa.Array:
    """Return a column of PNG images, as Hugging Face's ``datasets`` stores them."""
    cells = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": "frame.png"})
    return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def write_tables(path: Path, rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], version: Version) -> None:
    """Write the tables of the episodes and tasks."""
    if version == "v3.0":
        (path / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), path / "meta/episodes/chunk-000/file-000.parquet")
        table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": list(tasks)})
        pq.write_table(table, path / "meta/tasks.parquet")
        return
    (path / "meta").mkdir(parents=True)
    lines = [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in rows]
    write_lines(path / "meta/episodes.jsonl", lines)
    write_lines(path / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_info(path: Path, episodes: Sequence[Steps], version: Version, images: str) -> None:
    """Write ``meta/info.json``."""
    features: dict[str, Any] = {}
    for name, values in episodes[0].arrays.items():
        features[name] = {"dtype": str(values.dtype), "shape": list(values.shape[1:] or (1,)), "names": None}
    for name, frames in episodes[0].frames.items():
        height, width = frames.shape[1:3]
        shape = [height, width, 3] if images == "video" else [3, height, width]
        features[name] = {"dtype": images, "shape": shape, "names": None}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    v3, v2 = "chunk-{chunk_index:03d}/file-{file_index:03d}", "chunk-{episode_chunk:03d}/"
    is_v3 = version == "v3.0"
    lengths = [len(episode.arrays["action"]) for episode in episodes]
    info = {
        "codebase_version": version,
        "robot_type": "metaworld",
        "total_episodes": len(episodes),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": f"data/{v3}.parquet" if is_v3 else f"data/{v2}episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{v3}.mp4"
        if is_v3
        else f"videos/{v2}{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": features,
    }
    (path / "meta/info.json").write_text(json.dumps(info, indent=4))
