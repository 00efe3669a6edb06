"""EpisodeStore: content, and errors for incomplete or damaged datasets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import read_json, write_json


@pytest.fixture
def copy(reach_store: EpisodeStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reach_store.path, tmp_path / "copy"))


def test_a_dataset_holds_the_collected_episodes(reach_store: EpisodeStore) -> None:
    store = EpisodeStore.open(reach_store.path)
    assert store.info.task == "reach-v3"
    assert store.info.command.startswith("act collect --task reach-v3 --n 10")
    assert store.fingerprint == store.compute_fingerprint()
    episodes = store.episodes()
    assert [len(episode) for episode in episodes] == store.episode_lengths.tolist()
    assert [episode.success_step for episode in episodes] == store.success_steps.tolist()
    assert [episode.attempt for episode in episodes] == [i for i, a in enumerate(store.attempts()) if a.kept]
    for episode in episodes:
        assert np.array_equal(episode.state[0, 36:], episode.init_state.rand_vec[3:])
        assert episode.action.dtype == np.float32


def test_any_zarr_reader_can_read_a_dataset(reach_store: EpisodeStore) -> None:
    group = zarr.open_group(reach_store.path, mode="r")
    assert np.asarray(group["data/state"]).shape == (reach_store.num_steps, 39)
    assert np.asarray(group["meta/episode_ends"])[-1] == reach_store.num_steps


def test_missing_datasets_and_other_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no dataset at .*Fix: act collect"):
        EpisodeStore.open(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    zarr.open_group(tmp_path / "other", mode="w")
    for name in ("text", "folder", "other"):
        with pytest.raises(DatasetError, match="not a dataset of act_kit"):
            EpisodeStore.open(tmp_path / name)


def test_another_version_is_rejected(copy: Path) -> None:
    zarr.open_group(copy, mode="r+").attrs["version"] = 99
    with pytest.raises(DatasetError, match="has dataset version 99; this act_kit reads version 3"):
        EpisodeStore.open(copy)


@pytest.mark.parametrize("field", ["state", "action", "physics", "success"])
def test_a_missing_chunk_is_not_read_as_zeros(copy: Path, field: str) -> None:
    next(path for path in (copy / "data" / field / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(DatasetError, match=f"truncated, it lacks 1 chunks of data/{field}"):
        EpisodeStore.open(copy)


def test_a_shortened_array_is_detected(copy: Path) -> None:
    array = zarr.open_group(copy, mode="r+")["data/action"]
    assert isinstance(array, zarr.Array)
    array.resize((array.shape[0] - 5, 4))
    with pytest.raises(DatasetError, match="truncated: data/action has"):
        EpisodeStore.open(copy)


@pytest.mark.parametrize("missing", ["data/state", "meta/episode_ends", "meta/attempts"])
def test_a_missing_array_is_detected(copy: Path, missing: str) -> None:
    shutil.rmtree(copy / missing)
    with pytest.raises(DatasetError, match="damaged"):
        EpisodeStore.open(copy)


def test_a_damaged_chunk_is_detected_when_read(copy: Path) -> None:
    chunk = next(path for path in (copy / "data" / "state" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"\x00" * 50)
    with pytest.raises(DatasetError, match="data/state cannot be read"):
        EpisodeStore.open(copy).steps("state")


def test_a_changed_number_changes_the_fingerprint(copy: Path) -> None:
    array = zarr.open_group(copy, mode="r+")["data/action"]
    assert isinstance(array, zarr.Array)
    array[3, 0] = 0.123
    store = EpisodeStore.open(copy)
    assert store.fingerprint != store.compute_fingerprint()


def test_a_dataset_may_have_the_name_of_one_of_its_groups(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zarr strips the folder's name from its keys, which begin with ``data`` too."""
    shutil.copytree(reach_store.path, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert EpisodeStore.open("data").num_episodes == 10


def test_a_store_is_a_sequence_of_episodes(reach_store: EpisodeStore) -> None:
    episodes = reach_store.episodes()
    assert len(reach_store) == len(list(reach_store)) == len(episodes)
    for number in (0, 3, -1):
        for name, values in episodes[number].steps.items():
            assert np.array_equal(reach_store[number].steps[name], values)
        assert reach_store[number].init_state == episodes[number].init_state
    for number in (len(reach_store), -len(reach_store) - 1):
        with pytest.raises(IndexError, match=f"There is no episode of .* with number {number}: there are 10"):
            reach_store[number]
    for wrong in (slice(2), "a", 1.0, True):
        with pytest.raises(TypeError, match="is not the number of an episode of"):
            reach_store[wrong]  # type: ignore[index]
    with pytest.raises(DatasetError, match=r"has no data/stat; .* Did you mean 'state'"):
        reach_store.steps("stat")
    assert repr(reach_store).endswith(f"reach-v3, 10 episodes, {reach_store.num_steps} steps)")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [10**12, 4]),
        ("shape", [-1, 4]),
        ("shape", "x"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**9, 4]}}),
        ("chunk_grid", []),
        ("codecs", [{"name": "bytes"}, {"name": "gzip"}]),
        ("codecs", None),
        ("data_type", "float64"),
        ("data_type", "x" * 1000),
    ],
)
def test_array_declarations_are_checked_before_memory_is_allocated(copy: Path, key: str, value: object) -> None:
    file = copy / "data" / "action" / "zarr.json"
    write_json(file, {**read_json(file), key: value})
    with pytest.raises(DatasetError, match="data/action"):
        EpisodeStore.open(copy)


def test_more_committed_rows_than_stored_are_rejected(copy: Path) -> None:
    for name in ("data/action", "data/state", "meta/episode_ends"):
        file = copy / name / "zarr.json"
        declared = read_json(file)
        write_json(file, {**declared, "shape": [10**9, *declared["shape"][1:]]})
    root = read_json(copy / "zarr.json")
    root["attributes"]["committed"] |= {"num_steps": 10**9, "num_episodes": 10**9}
    write_json(copy / "zarr.json", root)
    with pytest.raises(DatasetError, match="truncated, it lacks"):
        EpisodeStore.open(copy)


@pytest.mark.parametrize("kind", ["pipe", "zeros", "huge", "loop", "folder", "bomb"])
def test_an_invalid_chunk_file_is_not_read(copy: Path, kind: str) -> None:
    chunk = copy / "data" / "action" / "c" / "0" / "0"
    compressed = chunk.read_bytes()
    chunk.unlink()
    if kind == "pipe":
        os.mkfifo(chunk)
    elif kind == "folder":
        chunk.mkdir()
    elif kind == "bomb":  # its header declares two terabytes
        chunk.write_bytes(compressed[:4] + b"\xe0" + (2**41).to_bytes(8, "little") + compressed[9:])
    elif kind == "huge":
        chunk.touch()
        os.truncate(chunk, 2**40)
    else:
        chunk.symlink_to("/dev/zero" if kind == "zeros" else chunk.name)
    with pytest.raises(DatasetError, match="data/action"):
        EpisodeStore.open(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise", float("nan")), ("seed", -1), ("horizon", 10**30), ("versions", {"numpy": 2}), ("command", None)],
)
def test_attributes_out_of_range_are_rejected(copy: Path, key: str, value: object) -> None:
    root = read_json(copy / "zarr.json")
    root["attributes"][key] = value
    write_json(copy / "zarr.json", root)
    with pytest.raises(DatasetError, match="is damaged"):
        EpisodeStore.open(copy)


@pytest.mark.parametrize(("name", "value"), [("source", 7), ("source", -1), ("success_step", 10**6), ("attempt", -1)])
def test_episode_metadata_out_of_range_is_rejected(copy: Path, name: str, value: int) -> None:
    array = zarr.open_group(copy, mode="r+")[f"meta/{name}"]
    assert isinstance(array, zarr.Array)
    array[1] = value
    with pytest.raises(DatasetError, match=f"meta/{name} is out of range"):
        EpisodeStore.open(copy)


def test_an_array_that_is_no_array_any_more_is_named(reach_store: EpisodeStore, tmp_path: Path) -> None:
    shutil.copytree(reach_store.path, tmp_path / "data")
    declared = tmp_path / "data" / "data" / "success" / "zarr.json"
    declared.write_text(declared.read_text(encoding="utf-8").replace('"array"', '"arroy"'), encoding="utf-8")
    with pytest.raises(DatasetError, match="data/success cannot be read"):
        _ = EpisodeStore.open(tmp_path / "data").widths
