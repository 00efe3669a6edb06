"""LeRobot datasets, version 3.0 (github.com/huggingface/lerobot), out: Parquet files and one video per episode.

The layout is what ``LeRobotDataset`` of lerobot 0.4.4 reads. Its API is not used: lerobot needs other versions of much
of what act_kit needs.

One video per episode, with a keyframe at every second frame as lerobot's own: any frame is found after decoding two,
and timestamps, which lerobot keeps as float32, stay small enough to tell frames apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.formats.content import Content
from act_kit.errors import DatasetError, install_hint
from act_kit.files import write_text
from act_kit.rollouts.episode import Recording

_STATE, _ENVIRONMENT, _IMAGES = "observation.state", "observation.environment_state", "observation.images."
_PROPRIOCEPTION = 4
"""Numbers of Meta-World's state that a robot knows of itself: hand and gripper."""

_FILES_PER_CHUNK = 1000
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_STATS_FRAMES = 50
"""Frames of an episode that its statistics are of."""

_CRF = 18
"""Of x264; lerobot's default of 30, for AV1, is coarser."""

Stats = dict[str, np.ndarray]


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes into a new folder ``path``; return what the format cannot hold.

    Raises:
        DatasetError: pyarrow is not installed, or frames have sides of an odd number of pixels.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DatasetError(f"LeRobot datasets are Parquet files: {install_hint('lerobot')}") from error
    for camera, drawn in content.cameras.items():
        if drawn.settings.height_px % 2 or drawn.settings.width_px % 2:
            raise DatasetError(f"The frames of {camera} are {drawn.settings}; videos need even sides. Draw them anew.")
    fps, begin, episodes, of_episodes = content.info.control_hz, 0, list[dict[str, Any]](), list[dict[str, Stats]]()
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (path / "data" / "chunk-000").mkdir(parents=True)
    writer: Any = None
    features: dict[str, dict[str, Any]] = {}
    left, rounded = set[str](), set[str]()
    try:
        for index, recording in enumerate(content.recordings):
            columns = _columns(recording, index, begin, fps)
            rounded |= {
                name
                for name in {"state", "reward"} & set(recording.steps)
                if (recording.steps[name] != recording.steps[name].astype(np.float32)).any()
            }
            features = features or _features(columns, content, fps)
            table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
            writer = writer or pq.ParquetWriter(
                path / "data" / (_FILE.format(chunk_index=0, file_index=0) + ".parquet"), table.schema
            )
            writer.write_table(table)
            stats = {name: _stats(values) for name, values in columns.items()}
            at = {"chunk_index": index // _FILES_PER_CHUNK, "file_index": index % _FILES_PER_CHUNK}
            videos: dict[str, Any] = {}
            for camera, frames in recording.images.items():
                key = _IMAGES + camera
                _write_video(path / "videos" / key / (_FILE.format(**at) + ".mp4"), frames, fps)
                stats[key] = _frame_stats(frames)
                videos |= {f"videos/{key}/{name}": number for name, number in at.items()}
                videos |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": len(frames) / fps}
            episodes.append(
                {
                    "episode_index": index, "tasks": [content.info.task], "length": len(recording),
                    "data/chunk_index": 0, "data/file_index": 0,
                    "dataset_from_index": begin, "dataset_to_index": begin + len(recording),
                    "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
                    **videos,
                    **{f"stats/{key}/{name}": v.tolist() for key, of in stats.items() for name, v in of.items()},
                }
            )  # fmt: skip
            of_episodes.append(stats)
            begin += len(recording)
            left |= set(recording.steps) - {"state", "action", "reward", "success"}
    finally:
        if writer is not None:
            writer.close()
    pq.write_table(
        pa.Table.from_pylist(episodes),
        path / "meta" / "episodes" / (_FILE.format(chunk_index=0, file_index=0) + ".parquet"),
    )
    _write_tasks(path / "meta" / "tasks.parquet", content.info.task)
    _write_json(
        path / "meta" / "stats.json", {key: _aggregate([s[key] for s in of_episodes]) for key in of_episodes[0]}
    )
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": begin,
        "total_tasks": 1,
        "chunks_size": _FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": f"data/{_FILE}.parquet",
        "video_path": f"videos/{{video_key}}/{_FILE}.mp4" if content.cameras else None,
        "features": features,
    }
    _write_json(path / "meta" / "info.json", info)
    notes = [f"rounded to float32: {', '.join(sorted(rounded))}"] if rounded else []
    notes += [f"left behind: {', '.join(sorted(left))}"] if left else []
    if content.cameras:
        notes.append("frames become videos, which are not exact")
        if _ENVIRONMENT in features:
            notes.append(f"for a policy that only looks, take {_ENVIRONMENT} out of its inputs")
    return notes


def _columns(recording: Recording, index: int, begin: int, fps: int) -> dict[str, np.ndarray]:
    """Return the columns of an episode, each (T, D) or (T,).

    Meta-World's state is split as lerobot's policies expect it: what the robot knows of itself, and the rest.
    """
    state = recording.steps["state"].astype(np.float32)
    known = _PROPRIOCEPTION if recording.init_state is not None else state.shape[1]
    columns = {_STATE: state[:, :known]}
    if known < state.shape[1]:
        columns[_ENVIRONMENT] = state[:, known:]
    columns["action"] = recording.steps["action"]
    for name, dtype in (("reward", np.float32), ("success", np.bool_)):
        if name in recording.steps:
            columns[f"next.{name}"] = recording.steps[name].astype(dtype)
    steps = np.arange(len(recording))
    return columns | {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(steps), index),
        "index": begin + steps,
        "task_index": np.zeros(len(steps), np.int64),
    }


def _features(columns: Mapping[str, np.ndarray], content: Content, fps: int) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:] or (1,)), "names": None}
        for name, values in columns.items()
    }
    for camera, drawn in content.cameras.items():
        height, width = drawn.settings.height_px, drawn.settings.width_px
        features[_IMAGES + camera] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False, "video.fps": fps, "video.channels": 3, "has_audio": False,
            },
        }  # fmt: skip
    return features


def _to_arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    if values.ndim == 1 or values.shape[1] == 1:  # what has one number is no list to lerobot
        return pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _write_tasks(path: Path, task: str) -> None:
    """Write the one task as pandas would write a table whose index it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = "__index_level_0__"
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": None if field == index else field, "field_name": field, "metadata": None, **types}
            for field, types in (
                ("task_index", {"pandas_type": "int64", "numpy_type": "int64"}),
                (index, {"pandas_type": "unicode", "numpy_type": "object"}),
            )
        ],
    }
    table = pa.table({"task_index": pa.array([0], pa.int64()), index: [task]})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    options = ["-crf", str(_CRF), "-g", "2", "-bf", "0"]  # without B-frames, which would shift all timestamps
    writer: Any
    with imageio.get_writer(
        path, fps=fps, codec="libx264", quality=None, pixelformat="yuv420p", macro_block_size=1, ffmpeg_params=options
    ) as writer:
        for frame in frames:
            writer.append_data(frame)


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=4, default=np.ndarray.tolist) + "\n")


# -- statistics, which lerobot normalises with ----------------------------------------------------------------------


def _stats(values: np.ndarray) -> Stats:
    """Return lerobot's statistics of the rows of ``values``, (T,) or (T, D), each of shape (D,)."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    stats = {
        "min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0),
        "count": np.array([len(rows)]),
    }  # fmt: skip
    quantiles = np.quantile(rows, _QUANTILES, axis=0)
    return stats | {f"q{100 * q:02.0f}": values for q, values in zip(_QUANTILES, quantiles, strict=True)}


def _frame_stats(frames: np.ndarray) -> Stats:
    """Return the statistics of frames, uint8 (T, H, W, 3), by channel in [0, 1], each of shape (3, 1, 1)."""
    some = frames[np.unique(np.linspace(0, len(frames) - 1, _STATS_FRAMES).round().astype(int))]
    stats = {
        name: (value / 255).reshape(3, 1, 1) for name, value in _stats(some.reshape(-1, 3)).items() if name != "count"
    }
    return stats | {"count": np.array([len(some)])}


def _aggregate(of_episodes: list[Stats]) -> Stats:
    """Return the statistics of all episodes; quantiles are, as lerobot's, the mean of theirs."""
    stacked = {name: np.stack([stats[name] for stats in of_episodes]) for name in of_episodes[0]}
    weights = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / stacked["count"].sum()
    means = {name: (values * weights).sum(axis=0) for name, values in stacked.items() if name[0] in "qm"}
    spread = stacked["std"] ** 2 + (stacked["mean"] - means["mean"]) ** 2
    return means | {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "std": np.sqrt((spread * weights).sum(axis=0)),
        "count": stacked["count"].sum(axis=0),
    }
