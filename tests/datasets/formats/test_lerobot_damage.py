"""Damaged, malicious and unsupported LeRobot datasets: an error of one line that names the file, and no output."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_kit.datasets.formats.lerobot import parquet
from act_kit.files import write_mp4
from tests.datasets.formats import lerobot_files
from tests.datasets.formats.checks import assert_rejected, require_one_line_or_valid_dataset
from tests.datasets.formats.lerobot_files import Steps

Damage = Callable[[Path], object]

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TOP = "observation.images.top"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"


def episodes() -> list[Steps]:
    """Three episodes of another robot: 6, 7 and 8 steps, with a camera."""
    rng = np.random.default_rng(0)
    found = []
    for num in (6, 7, 8):
        arrays = {
            "observation.state": rng.normal(size=(num, 3)).astype(np.float32),
            "action": rng.normal(size=(num, 2)).astype(np.float32),
        }
        frames = np.tile(np.arange(num, dtype=np.uint8)[:, None, None, None] * 20, (1, 32, 48, 3))
        found.append(Steps("fold", arrays, {TOP: frames}))
    return found


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The episodes in version 2.1 and in version 3.0, with videos and with PNG images."""
    found = {}
    for name, version, images in (
        ("v2.1", "v2.1", "image"),
        ("v3.0", "v3.0", "image"),
        ("video", "v3.0", "video"),
        ("v2.1-video", "v2.1", "video"),
    ):
        found[name] = tmp_path_factory.mktemp("lerobot") / "data"
        lerobot_files.write(found[name], episodes(), version, images=images)  # type: ignore[arg-type]
    return found


def info(**changes: Any) -> Damage:
    """Return a function that edits ``info.json``."""

    def change(path: Path) -> None:
        file = path / "meta/info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def feature(name: str, **changes: Any) -> Damage:
    """Return a function that edits a feature in ``info.json``."""

    def change(path: Path) -> None:
        features = json.loads((path / "meta/info.json").read_text())["features"]
        features[name] = features.get(name, {}) | changes
        info(features=features)(path)

    return change


def column(name: str, edit: Callable[[list[Any]], list[Any]] | None, file: str = DATA) -> Damage:
    """Return a function that edits the values of a column, or drops the column."""

    def change(path: Path) -> None:
        table = pq.read_table(path / file)
        at = table.column_names.index(name)
        table = table.remove_column(at) if edit is None else table.set_column(at, name, [edit(table[name].to_pylist())])
        pq.write_table(table, path / file)

    return change


def put(at: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """Return a function that replaces one value of a list."""
    return lambda values: [*values[:at], value, *values[at + 1 :]]


def cut(file: str, keep: float) -> Damage:
    """Return a function that truncates a file."""

    def change(path: Path) -> None:
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[: int(keep * len(data))])

    return change


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Return a function that puts something else in the place of a file."""

    def change(path: Path) -> None:
        (path / file).unlink()
        make(path / file)

    return change


def more_rows(path: Path) -> None:
    table = pq.read_table(path / DATA)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path / DATA)


def repeated_image(path: Path) -> None:
    """A dictionary of one value of 5 MB, which a column of billions of rows could repeat."""
    table = pq.read_table(path / DATA)
    cells = pa.array([{"bytes": bytes(5_000_000), "path": ""}] * len(table), table.schema.field(TOP).type)
    table = table.set_column(table.column_names.index(TOP), TOP, cells)
    pq.write_table(table, path / DATA, compression="zstd", dictionary_pagesize_limit=2**24)


def other_size(path: Path) -> None:
    frames = np.zeros((13, 64, 64, 3), np.uint8)
    write_mp4(path / VIDEO, frames, 80, quality=None, pixelformat="yuv420p", macro_block_size=1)


def fewer_frames(path: Path) -> None:
    frames = np.zeros((9, 32, 48, 3), np.uint8)
    write_mp4(path / VIDEO, frames, 80, quality=None, pixelformat="yuv420p", macro_block_size=1)


V3: dict[str, tuple[Damage, str]] = {
    "an older version": (info(codebase_version="v1.6"), "has version v1.6 of LeRobot's format: v2.0, v2.1, v3.0"),
    "a later version": (info(codebase_version="v4.0"), "are read. Fix: convert it with the scripts of lerobot"),
    "no JSON": (lambda p: (p / "meta/info.json").write_text("{"), "info.json is not JSON"),
    "a list": (lambda p: (p / "meta/info.json").write_text("[1]"), "info.json is damaged"),
    "a parent folder": (info(data_path="../data-{file_index:03d}.parquet"), "a path in the dataset was expected"),
    "an absolute path": (info(data_path="/etc/{file_index}"), "a path in the dataset was expected"),
    "an attribute": (info(data_path="{file_index.__class__}"), "a path in the dataset was expected"),
    "a billion digits": (info(data_path="{file_index:0999999999d}"), "a path in the dataset was expected"),
    "an unknown field": (info(data_path="{file}"), "are damaged"),
    "no path": (info(data_path=None), "None"),
    "a camera in another folder": (feature("observation.images.../../x", dtype="image", shape=[32, 48, 3]), "camera"),
    "many episodes": (info(total_episodes=10**12), "total_episodes is 1000000000000"),
    "too few steps": (info(total_frames=20), "the episodes have 21 steps in total; meta/info.json says 20"),
    "no rate": (info(fps=0), "fps is 0"),
    "a rate that is text": (info(fps="fast"), "info.json is damaged"),
    "terabytes": (feature("action", shape=[10**10]), "an episode may have 6 GB"),
    "a large frame": (feature(TOP, shape=[4000, 4000, 3]), "sides of 16 to 1024 px"),
    "a shape of text": (feature("action", shape=["2"]), "info.json is damaged"),
    "text as actions": (feature("action", dtype="string"), "action is string; numbers were expected"),
    "another width": (feature("action", shape=[3]), "action has shape (2,) per step; info.json says (3,)"),
    "no actions": (column("action", None), "lacks the column action"),
    "no index": (column("frame_index", None), "lacks the column frame_index"),
    "actions of text": (column("action", lambda values: ["x"] * len(values)), "it is string; numbers were expected"),
    "NaN": (column("action", put(3, [0.0, float("nan")])), "action has values that are not finite"),
    "missing values": (column("action", put(3, [0.0, None])), "1 values are missing (null)"),
    "missing rows": (column("action", put(3, None)), "missing"),
    "rows of other lengths": (column("action", put(3, [0.0])), "its rows have 1 to 2 numbers"),
    "steps out of order": (column("frame_index", put(3, 4)), "frame_index does not count from 0"),
    "episodes out of order": (column("episode_index", put(3, 1)), "the table of the episodes says otherwise"),
    "an unknown episode": (column("episode_index", lambda v: [2**62] * len(v)), "are of episode 4611686018427387904"),
    "a jump": (column("index", put(3, -7)), "index does not count by one"),
    "other times": (column("timestamp", put(3, 9.0)), "the timestamps are not those of 80 steps a second"),
    "times that are NaN": (column("timestamp", put(3, float("nan"))), "the timestamps are not those"),
    "another task": (column("task_index", put(3, 5)), "task_index is 5, which is not that of the episode's task"),
    "indices that are real": (column("frame_index", lambda v: [0.5] * len(v)), "no single number in each row"),
    "more rows": (more_rows, "has 14 rows; its 2 episodes have 13"),
    "half a file": (cut(DATA, 0.5), "is damaged or not Parquet"),
    "an empty file": (cut(DATA, 0), "is damaged or not Parquet"),
    "no file": (instead(DATA, lambda file: None), "is damaged or not Parquet"),
    "a folder": (instead(DATA, Path.mkdir), "is not a regular file"),
    "a pipe": (instead(DATA, os.mkfifo), "is not a regular file"),
    "a link to itself": (instead(DATA, lambda file: file.symlink_to(file)), "cannot be read"),
    "no tables": (lambda p: shutil.rmtree(p / "meta/episodes"), "has 0 rows; the episodes 0 to 2 were expected"),
    "no tasks": (instead("meta/tasks.parquet", lambda file: None), "tasks.parquet"),
    "tasks without text": (column("task", None, "meta/tasks.parquet"), "task and task_index were expected"),
    "an episode twice": (column("episode_index", put(1, 0), EPISODES), "were expected, each once"),
    "a negative episode": (column("episode_index", put(0, -1), EPISODES), "were expected, each once"),
    "a huge episode": (column("episode_index", put(2, 2**62), EPISODES), "were expected, each once"),
    "no steps": (column("length", put(0, 0), EPISODES), "length is 0"),
    "a huge length": (column("length", put(0, 2**40), EPISODES), "length is 1099511627776"),
    "another length": (column("length", lambda v: [7, 6, 8], EPISODES), "the table of the episodes says otherwise"),
    "a negative file": (column("data/file_index", put(0, -1), EPISODES), "data/file_index is -1"),
    "another file": (column("data/file_index", put(0, 7), EPISODES), "file-007.parquet"),
    "two tasks": (column("tasks", put(0, ["a", "b"]), EPISODES), "has the tasks ['a', 'b']; one task was expected"),
    "no task": (column("tasks", put(0, []), EPISODES), "one task was expected"),
    "half an image": (
        column(TOP, lambda v: put(3, {"bytes": v[3]["bytes"][:40], "path": ""})(v)),
        "image 3 is damaged",
    ),
    "no image": (column(TOP, put(3, {"bytes": b"GIF89a", "path": ""})), "image 3 is damaged"),
    "an image elsewhere": (column(TOP, put(3, {"bytes": None, "path": "/etc/passwd"})), "is not in the Parquet file"),
    "an image of another size": (feature(TOP, shape=[3, 48, 32]), "has 32x48 px; 48x32 were expected"),
    "images that are numbers": (column(TOP, lambda v: [1.0] * len(v)), "is not in the Parquet file"),
    "a repeated image": (repeated_image, "it declares a page of"),
}

VIDEOS: dict[str, tuple[Damage, str]] = {
    "no video": (instead(VIDEO, lambda file: None), "file-000.mp4 cannot be read"),
    "a pipe": (instead(VIDEO, os.mkfifo), "is not a regular file"),
    "half a video": (cut(VIDEO, 0.4), "has fewer frames than its episode: 0 of 6 can be decoded"),
    "text": (instead(VIDEO, lambda file: file.write_text("ffconcat version 1.0\nfile /etc/passwd")), "fewer frames"),
    "fewer frames": (fewer_frames, "has fewer frames than its episode: 3 of 7 can be decoded"),
    "frames of another size": (other_size, "its frames are 64x64; 32x48 were expected"),
    "a late beginning": (
        column(f"videos/{TOP}/from_timestamp", put(0, 9e5), EPISODES),
        "fewer frames than its episode",
    ),
    "no beginning": (column(f"videos/{TOP}/from_timestamp", put(0, float("nan")), EPISODES), "begins at nan s"),
    "no path": (info(video_path=None), "None"),
}

V2: dict[str, tuple[Damage, str]] = {
    "no table": (instead("meta/episodes.jsonl", lambda file: None), "episodes.jsonl"),
    "a line of text": (
        instead("meta/episodes.jsonl", lambda file: file.write_text("x\n")),
        "episodes.jsonl is damaged",
    ),
    "a line of numbers": (instead("meta/tasks.jsonl", lambda file: file.write_text("1\n")), "an object was expected"),
    "an episode of another file": (
        lambda p: shutil.copy(p / lerobot_files.v2_name("data", 1), p / lerobot_files.v2_name("data", 0)),
        "has 7 rows; its 1 episodes have 6",
    ),
    "chunks of none": (info(chunks_size=0), "chunks_size is 0"),
    "huge chunks": (info(data_path="{chunk_index}"), "are damaged"),
}


@pytest.mark.parametrize("case", V3)
def test_an_invalid_dataset_of_version_3_is_rejected(datasets: dict[str, Path], tmp_path: Path, case: str) -> None:
    damage_and_require_rejection(datasets["v3.0"], tmp_path, *V3[case])


@pytest.mark.parametrize("case", VIDEOS)
def test_an_invalid_video_is_rejected(datasets: dict[str, Path], tmp_path: Path, case: str) -> None:
    damage_and_require_rejection(datasets["video"], tmp_path, *VIDEOS[case])


@pytest.mark.parametrize("case", V2)
def test_an_invalid_dataset_of_version_2_is_rejected(datasets: dict[str, Path], tmp_path: Path, case: str) -> None:
    damage_and_require_rejection(datasets["v2.1"], tmp_path, *V2[case])


def damage_and_require_rejection(original: Path, tmp_path: Path, damage: Damage, expected: str) -> None:
    path = Path(shutil.copytree(original, tmp_path / "data"))
    damage(path)
    assert_rejected(path, tmp_path / "out", expected)


@pytest.mark.parametrize("limit", ["_MAX_ROWS", "_MAX_PAGE_BYTES", "_MAX_VALUES"])
def test_declared_sizes_are_limited(
    datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(parquet, limit, 10)
    damage_and_require_rejection(datasets["v3.0"], tmp_path, lambda path: None, "declares")


def test_a_footer_at_which_pyarrow_aborts_is_named(
    datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborting = "import json, os, sys\nfor path in json.load(sys.stdin):\n    print(path, flush=True)\n    os.abort()"
    monkeypatch.setattr(parquet, "_READ_FOOTERS", aborting)
    damage_and_require_rejection(datasets["v3.0"], tmp_path, lambda path: None, ".parquet is damaged: PyArrow cannot")


@pytest.mark.parametrize("name", ["v2.1", "v3.0"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_gives_one_line_or_a_valid_dataset(
    datasets: dict[str, Path], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    damage_bytes(datasets[name], tmp_path, data)


@pytest.mark.parametrize("name", ["v2.1-video", "video"])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_videos_give_one_line_or_a_valid_dataset(
    datasets: dict[str, Path], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    damage_bytes(datasets[name], tmp_path, data, "*.mp4")


def damage_bytes(original: Path, tmp_path: Path, data: st.DataObject, pattern: str = "*") -> None:
    """Replace some bytes of a file, and perhaps truncate it."""
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    path = Path(shutil.copytree(original, tmp_path / "data"))
    file = data.draw(st.sampled_from(sorted(file for file in path.rglob(pattern) if file.is_file())))
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    is_cut = data.draw(st.booleans())
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if is_cut else damaged)
    require_one_line_or_valid_dataset(path, tmp_path / "out")
