"""Writer of LeRobot datasets, version 3.0 (github.com/huggingface/lerobot): Parquet files and one video per episode.

The layout is that of ``LeRobotDataset`` of lerobot 0.4.4. Its API is not used, because lerobot and act_kit need
different versions of several dependencies.

Each episode has its own video, with a keyframe at every second frame as in lerobot's own: a random access decodes at
most two frames, and timestamps, which lerobot stores as float32, stay small enough to distinguish frames.

What lerobot stores with less precision, or not at all, is in a further file, which it ignores and the reader uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.arrays import evenly_spaced
from act_kit.datasets.formats.content import Content
from act_kit.datasets.formats.lerobot.names import ENVIRONMENT, EXACT_STEPS, IMAGE_PREFIX, PROPRIOCEPTION, STATE
from act_kit.errors import DatasetError, install_hint
from act_kit.files import write_mp4, write_text
from act_kit.rollouts.episode import Episode

_FILES_PER_CHUNK = 1000
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_FIRST_FILE = "chunk-000/file-000.parquet"
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_STATS_FRAMES = 50
"""Number of frames per episode from which image statistics are computed."""

_CRF = 18
"""Quality of x264; lerobot's default of 30, for AV1, is coarser."""

Stats = dict[str, np.ndarray]


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes to a new folder ``path``; return notes on data that the format cannot store.

    Raises:
        DatasetError: pyarrow is not installed, or frames have an odd height or width.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DatasetError(f"LeRobot datasets are Parquet files: {install_hint('lerobot')}") from error
    for camera, rendered in content.cameras.items():
        if rendered.settings.height_px % 2 or rendered.settings.width_px % 2:
            raise DatasetError(f"Videos need an even size: {camera} has {rendered.settings}. Fix: render it again.")
    fps, begin = content.info.control_hz, 0
    episodes: list[dict[str, Any]] = []
    episode_stats: dict[str, list[Stats]] = {}
    features: dict[str, dict[str, Any]] = {}
    inexact = set[str]()
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (path / "data" / "chunk-000").mkdir(parents=True)
    (path / EXACT_STEPS).parent.mkdir()
    with _Tables() as tables:
        for index, recording in enumerate(content.recordings):
            columns = _columns(recording, index, begin, fps)
            inexact |= _inexact_fields(recording)
            features = features or _features(columns, content, fps)
            tables.write(path / "data" / _FIRST_FILE, columns)
            tables.write(
                path / EXACT_STEPS, {name: values for name, values in recording.steps.items() if name != "action"}
            )
            episode = {
                "episode_index": index,
                "tasks": [content.info.task],
                "length": len(recording),
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": begin,
                "dataset_to_index": begin + len(recording),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            stats = {name: _stats(values) for name, values in columns.items()}
            file = {"chunk_index": index // _FILES_PER_CHUNK, "file_index": index % _FILES_PER_CHUNK}
            for camera, frames in recording.images.items():
                key = IMAGE_PREFIX + camera
                _write_video(path / "videos" / key / (_FILE.format(**file) + ".mp4"), frames, fps)
                stats[key] = _frame_stats(frames)
                video = {**file, "from_timestamp": 0.0, "to_timestamp": len(frames) / fps}
                episode |= {f"videos/{key}/{name}": value for name, value in video.items()}
            for key, values_of in stats.items():
                episode_stats.setdefault(key, []).append(values_of)
                for statistic, array in values_of.items():
                    episode[f"stats/{key}/{statistic}"] = array.tolist()
            episodes.append(episode)
            begin += len(recording)
    pq.write_table(pa.Table.from_pylist(episodes), path / "meta" / "episodes" / _FIRST_FILE)
    _write_tasks(path / "meta" / "tasks.parquet", content.info.task)
    _write_json(path / "meta" / "stats.json", {key: _aggregate(stats) for key, stats in episode_stats.items()})
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
    return _notes(content, features, inexact)


class _Tables:
    """Writers of the Parquet files of the steps, one per path, with a row group per episode."""

    def __init__(self) -> None:
        self._writers: dict[Path, Any] = {}

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, path: Path, columns: Mapping[str, np.ndarray]) -> None:
        """Append the columns of an episode, each (T, D) or (T,)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
        if path not in self._writers:
            self._writers[path] = pq.ParquetWriter(path, table.schema)
        self._writers[path].write_table(table)


def _inexact_fields(recording: Episode) -> set[str]:
    """Return the fields that lerobot does not read, or reads with less precision."""
    inexact = set(recording.steps) - {"action", "success"}
    for name in {"state", "reward"} & inexact:
        if (recording.steps[name] == recording.steps[name].astype(np.float32)).all():
            inexact.remove(name)
    return inexact


def _notes(content: Content, features: Mapping[str, object], inexact: set[str]) -> list[str]:
    """Return notes on data that the format cannot store."""
    notes = []
    rounded = sorted(inexact & {"state", "reward"})
    if rounded:
        notes.append(f"lerobot reads as float32: {', '.join(rounded)} (exact in {EXACT_STEPS})")
    omitted = sorted(inexact - {"state", "reward"})
    if omitted:
        notes.append(f"lerobot does not read: {', '.join(omitted)} (in {EXACT_STEPS})")
    if content.cameras:
        notes.append("images are stored as videos, with lossy compression")
        if ENVIRONMENT in features:
            notes.append(f"for an image-only policy, remove {ENVIRONMENT} from its inputs")
    return notes


def _columns(recording: Episode, index: int, begin: int, fps: int) -> dict[str, np.ndarray]:
    """Return the columns of an episode, each (T, D) or (T,).

    Meta-World's state is split as lerobot's policies expect it: proprioception, and the state of the environment.
    """
    state = recording.steps["state"].astype(np.float32)
    width = PROPRIOCEPTION if recording.init_state is not None else state.shape[1]
    columns = {STATE: state[:, :width]}
    if width < state.shape[1]:
        columns[ENVIRONMENT] = state[:, width:]
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
    features: dict[str, dict[str, Any]] = {}
    for name, values in columns.items():
        features[name] = {"dtype": str(values.dtype), "shape": list(values.shape[1:] or (1,)), "names": None}
    for camera, rendered in content.cameras.items():
        height, width = rendered.settings.height_px, rendered.settings.width_px
        features[IMAGE_PREFIX + camera] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                **{"video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p"},
                **{"video.is_depth_map": False, "video.fps": fps, "video.channels": 3, "has_audio": False},
            },
        }
    return features


def _to_arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    numbers = pa.array(values.reshape(-1))
    # lerobot stores single numbers without a list.
    return numbers if values[0].size == 1 else pa.FixedSizeListArray.from_arrays(numbers, values.shape[1])


def _write_tasks(path: Path, task: str) -> None:
    """Write the task in the format of a pandas table with the task as index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = "__index_level_0__"
    number = {"name": "task_index", "field_name": "task_index", "metadata": None}
    text = {"name": None, "field_name": index, "metadata": None}
    number |= {"pandas_type": "int64", "numpy_type": "int64"}
    text |= {"pandas_type": "unicode", "numpy_type": "object"}
    pandas = {"index_columns": [index], "column_indexes": [], "columns": [number, text]}
    table = pa.table({"task_index": pa.array([0], pa.int64()), index: [task]})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    options = ["-crf", str(_CRF), "-g", "2", "-bf", "0"]  # no B-frames, which would shift all timestamps
    write_mp4(path, frames, fps, quality=None, pixelformat="yuv420p", macro_block_size=1, ffmpeg_params=options)


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=4, default=np.ndarray.tolist) + "\n")


# -- statistics for lerobot's normalization -------------------------------------------------------------------------


def _stats(values: np.ndarray) -> Stats:
    """Return lerobot's statistics of the rows of ``values``, (T,) or (T, D), each of shape (D,)."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0)}
    stats["count"] = np.array([len(rows)])
    return stats | dict(zip(_QUANTILES, np.quantile(rows, list(_QUANTILES.values()), axis=0), strict=True))


def _frame_stats(frames: np.ndarray) -> Stats:
    """Return the statistics of frames, uint8 (T, H, W, 3), per channel in [0, 1], each of shape (3, 1, 1)."""
    sampled = frames[evenly_spaced(len(frames), _STATS_FRAMES)]
    channel_stats = _stats(sampled.reshape(-1, 3))
    del channel_stats["count"]
    stats = {name: (value / 255).reshape(3, 1, 1) for name, value in channel_stats.items()}
    return stats | {"count": np.array([len(sampled)])}


def _aggregate(episode_stats: list[Stats]) -> Stats:
    """Return the statistics of all episodes; quantiles are averaged over the episodes, as in lerobot."""
    stacked: Stats = {}
    for name in episode_stats[0]:
        stacked[name] = np.stack([stats[name] for stats in episode_stats])
    weights = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / stacked["count"].sum()
    means = {name: (values * weights).sum(axis=0) for name, values in stacked.items() if name[0] in "qm"}
    variances = stacked["std"] ** 2 + (stacked["mean"] - means["mean"]) ** 2
    return means | {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "std": np.sqrt((variances * weights).sum(axis=0)),
        "count": stacked["count"].sum(axis=0),
    }
