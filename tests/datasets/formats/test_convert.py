"""To the formats of others and back: nothing is lost that they can hold, and the rest is said."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from act_kit.datasets.formats.convert import convert
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError, DatasetError, OutputError
from tests.conftest import act, make_dataset
from tests.datasets.formats.files import compress_episode, smooth_frames, write_aloha_episode, write_replay_buffer


def run(path: Path, out: Path, to: str = "act_kit", task: str = "") -> str:
    """Convert, and return what is said to be lost."""
    return "; ".join(convert(path, out, to=to, task=task, overwrite=False)[1].notes)


def assert_same(store: EpisodeStore, other: EpisodeStore) -> None:
    """Require the same content, to the bit: steps, starts, failed attempts, sources and pictures."""
    assert other.fingerprint == other.compute_fingerprint() == store.fingerprint
    assert other.fields == store.fields
    assert other.sources == store.sources
    assert other.attempts() == store.attempts()
    assert [r.attempt for r in other.recordings()] == [r.attempt for r in store.recordings()]
    assert ImageStore.cameras(other) == ImageStore.cameras(store)
    for camera in ImageStore.cameras(store):
        ours, theirs = ImageStore(store, camera), ImageStore(other, camera)
        assert (theirs.settings, theirs.renderer) == (ours.settings, ours.renderer)
        for index in range(store.num_episodes):
            assert np.array_equal(theirs.episode(index), ours.episode(index))
    for name in ("task", "seed", "start_law", "noise", "horizon", "control_hz"):
        assert getattr(other.info, name) == getattr(store.info, name)


@pytest.mark.parametrize("to", ["act-hdf5", "diffusion-policy"])
def test_a_round_trip_loses_nothing(pictures_store: EpisodeStore, tmp_path: Path, to: str) -> None:
    run(pictures_store.path, tmp_path / "theirs", to)
    assert run(tmp_path / "theirs", tmp_path / "back") == ""
    back = EpisodeStore.open(tmp_path / "back")
    assert_same(pictures_store, back)
    (parent,) = back.info.parents
    assert (parent["path"], parent["format"]) == (str(tmp_path / "theirs"), to)
    assert parent["made_by"] == pictures_store.info.command


def test_derived_data_come_back_too(reach_store: EpisodeStore, tmp_path: Path) -> None:
    act("data", "filter", reach_store.path, "--where", "random < 0.5", "--out", tmp_path / "half", check=0)
    run(tmp_path / "half", tmp_path / "theirs", "act-hdf5")
    run(tmp_path / "theirs", tmp_path / "back")
    assert_same(EpisodeStore.open(tmp_path / "half"), EpisodeStore.open(tmp_path / "back"))


def test_from_one_of_theirs_to_the_other(tmp_path: Path) -> None:
    """Noise on the actions, rewards and failed attempts come along."""
    store = make_dataset(tmp_path / "data", task="peg-insert-side-v3", n=3, noise=0.3, rewards=True)
    run(store.path, tmp_path / "a", "diffusion-policy")
    run(tmp_path / "a", tmp_path / "b", "act-hdf5")
    run(tmp_path / "b", tmp_path / "back")
    assert_same(store, EpisodeStore.open(tmp_path / "back"))


def test_a_change_on_the_way_is_noticed(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """HDF5 itself would not."""
    run(reach_store.path, tmp_path / "theirs", "act-hdf5")
    with h5py.File(tmp_path / "theirs" / "episode_3.hdf5", "r+") as root:
        root["action"][5, 0] += 0.001
    assert "changed on the way" in run(tmp_path / "theirs", tmp_path / "back")


def test_act_finds_in_the_files_what_it_reads(pictures_store: EpisodeStore, tmp_path: Path) -> None:
    notes = run(pictures_store.path, tmp_path / "out", "act-hdf5")
    assert "qvel zeros" in notes
    episode = pictures_store.episodes()[1]
    with h5py.File(tmp_path / "out" / "episode_1.hdf5") as root:
        assert root.attrs["sim"]
        assert np.array_equal(root["/observations/qpos"][()], episode.state)
        assert np.array_equal(root["/action"][()], episode.action)
        assert root["/observations/qvel"].shape == episode.state.shape
        frames = root["/observations/images/corner4"]
        assert frames.dtype == np.uint8
        assert frames.shape == (len(episode), 32, 32, 3)


def test_diffusion_policy_finds_what_it_reads(pictures_store: EpisodeStore, tmp_path: Path) -> None:
    assert run(pictures_store.path, tmp_path / "out", "diffusion-policy") == ""
    root = zarr.open_group(tmp_path / "out", mode="r", zarr_format=2)
    ends = np.asarray(root["meta/episode_ends"])  # type: ignore[arg-type]
    assert np.array_equal(ends, pictures_store.episode_ends)
    assert {array.shape[0] for _, array in root["data"].arrays()} == {ends[-1]}  # type: ignore[union-attr]
    assert json.loads((tmp_path / "out/data/corner4/.zarray").read_text())["compressor"]["id"] == "blosc"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves pipes open
def test_what_lerobot_reads(pictures_store: EpisodeStore, tmp_path: Path) -> None:
    """Steps, episodes, statistics and videos go together (benchmarks/interchange.py lets lerobot itself read them)."""
    import imageio.v2 as imageio

    notes = run(pictures_store.path, tmp_path / "out", "lerobot")
    assert "rounded to float32: state" in notes
    assert "left behind: distance, executed_action, physics" in notes
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 80, 4)
    steps = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    state = np.concatenate(
        [np.stack(steps[f"observation.{part}"].to_numpy()) for part in ("state", "environment_state")], axis=1
    )
    assert np.array_equal(state, pictures_store.steps("state").astype(np.float32))
    assert np.array_equal(np.stack(steps["action"].to_numpy()), pictures_store.steps("action"))
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert episodes["dataset_to_index"] == pictures_store.episode_ends.tolist()
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert np.allclose(stats["action"]["mean"], pictures_store.steps("action").mean(axis=0, dtype=np.float64))
    assert np.allclose(stats["action"]["std"], pictures_store.steps("action").std(axis=0, dtype=np.float64))
    assert stats["action"]["count"] == [pictures_store.num_steps]
    assert np.shape(stats["observation.images.corner4"]["q50"]) == (3, 1, 1)
    for index, length in enumerate(pictures_store.episode_lengths):
        video = tmp_path / f"out/videos/observation.images.corner4/chunk-000/file-{index:03d}.mp4"
        with imageio.get_reader(video) as reader:
            frames = list(reader.iter_data())
        assert len(frames) == length
        drawn = ImageStore(pictures_store, "corner4").episode(index)
        assert np.abs(np.stack(frames).astype(float) - drawn).mean() < 12


def test_aloha_comes_in(tmp_path: Path) -> None:
    """Fourteen joints and a 480x640 camera, as ACT records its simulated tasks; in the order of their numbers."""
    folder = tmp_path / "sim_transfer_cube_scripted"
    folder.mkdir()
    for number in (0, 2, 10):
        write_aloha_episode(folder / f"episode_{number}.hdf5", seed=number, steps=3 + number % 4)
    notes = run(folder, tmp_path / "out")
    assert "observations/qvel is left behind" in notes
    assert "50 Hz is assumed" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert (store.info.task, store.info.control_hz) == ("sim_transfer_cube_scripted", 50)
    assert store.episode_lengths.tolist() == [3, 5, 5]
    assert store.sources == ["imported"] * 3
    assert store.lacks[0] == "start"
    with h5py.File(folder / "episode_2.hdf5") as root:
        (_, second, _) = store.recordings()
        assert np.array_equal(second.steps["state"], root["observations/qpos"][()].astype(np.float64))
        assert np.array_equal(second.steps["action"], root["action"][()])
        assert np.array_equal(ImageStore(store, "top").episode(1), root["observations/images/top"][()])


def test_compressed_frames_come_in_as_opencv_decodes_them(tmp_path: Path) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", steps=3)
    compress_episode(tmp_path / "episode_0.hdf5", smooth_frames(3))
    run(tmp_path / "episode_0.hdf5", tmp_path / "out")
    frames = ImageStore(EpisodeStore.open(tmp_path / "out"), "top").episode(0)
    assert np.abs(frames.astype(int) - smooth_frames(3)).max() < 12


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_replay_buffer_comes_in(tmp_path: Path, zipped: bool) -> None:
    if zipped:
        with zarr.storage.ZipStore(tmp_path / "pusht.zarr.zip", mode="w") as zip_store:
            data = write_replay_buffer(zip_store)
    else:
        data = write_replay_buffer(tmp_path / "pusht.zarr")
    notes = run(tmp_path / ("pusht.zarr.zip" if zipped else "pusht.zarr"), tmp_path / "out")
    assert "left behind: keypoint, n_contacts" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert store.info.task == "pusht"
    assert store.episode_ends.tolist() == [4, 7]
    assert np.array_equal(store.steps("state"), data["state"])
    assert np.array_equal(store.steps("action"), data["action"])
    assert np.array_equal(np.concatenate([f for _, f in ImageStore(store, "img").blocks()]), data["img"])


def test_what_imported_data_cannot_do_is_said_in_a_line(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "pusht.zarr")
    act("data", "convert", tmp_path / "pusht.zarr", tmp_path / "out", check=0)
    shown = act("data", "info", tmp_path / "out", "--verify", check=0).stdout
    assert "imported, 2 episodes" in shown
    assert "not recorded" in shown
    assert "diffusion-policy" in shown
    for verb in (("data", "replay"), ("render",)):
        done = act(*verb, tmp_path / "out", check=2)
        assert "was imported without" in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_input_and_what_is_there_are_safe(reach_store: EpisodeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(reach_store.path, out, "diffusion-policy")
    with pytest.raises(OutputError, match="exists"):
        run(reach_store.path, out, "act-hdf5")
    convert(reach_store.path, out, to="act-hdf5", task="", overwrite=True)
    assert (out / "episode_9.hdf5").exists()
    for inside in (out, out / "deeper", tmp_path):
        with pytest.raises(OutputError, match="in one another"):
            convert(out, inside, to="act_kit", task="", overwrite=True)
    with pytest.raises(DatasetError, match="already"):
        run(out, tmp_path / "again", "act-hdf5")
    with pytest.raises(ActKitError, match="Did you mean 'lerobot'"):
        run(out, tmp_path / "again", "lerobo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
