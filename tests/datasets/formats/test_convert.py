"""Conversion to other formats and back: no loss of data that a format can store, and notes on the rest."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from act_kit.datasets.formats.content import Keys
from act_kit.datasets.formats.convert import convert
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError, DatasetError, OutputError
from tests.conftest import act, make_dataset
from tests.datasets.formats.files import compress_episode, smooth_frames, write_aloha_episode, write_replay_buffer


def run(path: Path, out: Path, to: str = "act_kit", task: str = "", **keys: str) -> str:
    """Convert, and return the notes."""
    (content,) = convert(path, out, to=to, task=task, overwrite=False, keys=Keys(**keys))[1]
    return "; ".join(content.notes)


def assert_same(store: EpisodeStore, other: EpisodeStore) -> None:
    """Require bit-exact content: steps, initial states, failed attempts, sources and images."""
    assert other.fingerprint == other.compute_fingerprint() == store.fingerprint
    assert other.fields == store.fields
    assert other.sources == store.sources
    assert other.attempts() == store.attempts()
    assert [r.attempt for r in other.iter_episodes()] == [r.attempt for r in store.iter_episodes()]
    assert ImageStore.cameras(other) == ImageStore.cameras(store)
    for camera in ImageStore.cameras(store):
        expected, actual = ImageStore(store, camera), ImageStore(other, camera)
        assert (actual.settings, actual.renderer) == (expected.settings, expected.renderer)
        for index in range(store.num_episodes):
            assert np.array_equal(actual.episode(index), expected.episode(index))
    for name in ("task", "seed", "init_distribution", "noise", "horizon", "control_hz"):
        assert getattr(other.info, name) == getattr(store.info, name)


@pytest.mark.parametrize("to", ["act-hdf5", "diffusion-policy"])
def test_a_round_trip_loses_nothing(images_store: EpisodeStore, tmp_path: Path, to: str) -> None:
    run(images_store.path, tmp_path / "export", to)
    assert run(tmp_path / "export", tmp_path / "back") == ""
    back = EpisodeStore.open(tmp_path / "back")
    assert_same(images_store, back)
    (parent,) = back.info.parents
    assert (parent["path"], parent["format"]) == (str(tmp_path / "export"), to)
    assert parent["made_by"] == images_store.info.command
    with pytest.raises(ActKitError, match=r"holds reach-v3, which --task push-v3 cannot change\. Fix: omit --task"):
        run(tmp_path / "export", tmp_path / "other", task="push-v3")


def test_a_round_trip_of_derived_data_loses_nothing(reach_store: EpisodeStore, tmp_path: Path) -> None:
    act("data", "filter", reach_store.path, "--where", "random < 0.5", "--out", tmp_path / "half", check=0)
    run(tmp_path / "half", tmp_path / "export", "act-hdf5")
    run(tmp_path / "export", tmp_path / "back")
    assert_same(EpisodeStore.open(tmp_path / "half"), EpisodeStore.open(tmp_path / "back"))


def test_conversion_between_two_other_formats_loses_nothing(tmp_path: Path) -> None:
    """The data has noise on the actions, rewards and failed attempts."""
    store = make_dataset(tmp_path / "data", task="peg-insert-side-v3", n=3, noise=0.3, rewards=True)
    run(store.path, tmp_path / "a", "diffusion-policy")
    run(tmp_path / "a", tmp_path / "b", "act-hdf5")
    run(tmp_path / "b", tmp_path / "back")
    assert_same(store, EpisodeStore.open(tmp_path / "back"))


def test_a_change_of_exported_files_is_detected(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """HDF5 itself does not detect it."""
    run(reach_store.path, tmp_path / "export", "act-hdf5")
    with h5py.File(tmp_path / "export" / "episode_3.hdf5", "r+") as root:
        root["action"][5, 0] += 0.001
    assert "the files were changed" in run(tmp_path / "export", tmp_path / "back")


def test_exported_hdf5_has_the_layout_of_act(images_store: EpisodeStore, tmp_path: Path) -> None:
    notes = run(images_store.path, tmp_path / "out", "act-hdf5")
    assert "qvel is zero" in notes
    episode = images_store.episodes()[1]
    with h5py.File(tmp_path / "out" / "episode_1.hdf5") as root:
        assert root.attrs["sim"]
        assert np.array_equal(root["/observations/qpos"][()], episode.state)
        assert np.array_equal(root["/action"][()], episode.action)
        assert root["/observations/qvel"].shape == episode.state.shape
        frames = root["/observations/images/corner4"]
        assert frames.dtype == np.uint8
        assert frames.shape == (len(episode), 32, 32, 3)


def test_an_exported_replay_buffer_has_its_original_layout(images_store: EpisodeStore, tmp_path: Path) -> None:
    assert run(images_store.path, tmp_path / "out", "diffusion-policy") == ""
    root = zarr.open_group(tmp_path / "out", mode="r", zarr_format=2)
    ends = np.asarray(root["meta/episode_ends"])
    assert np.array_equal(ends, images_store.episode_ends)
    assert {array.shape[0] for _, array in root["data"].arrays()} == {ends[-1]}  # type: ignore[union-attr]
    assert json.loads((tmp_path / "out/data/corner4/.zarray").read_text())["compressor"]["id"] == "blosc"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves pipes open
def test_an_exported_lerobot_dataset_has_the_layout_of_lerobot(images_store: EpisodeStore, tmp_path: Path) -> None:
    """Steps, episodes, statistics and videos are consistent (benchmarks/interchange.py reads them with lerobot)."""
    import imageio.v2 as imageio

    notes = run(images_store.path, tmp_path / "out", "lerobot")
    assert "lerobot reads as float32: state (exact in act_kit/steps.parquet)" in notes
    assert "lerobot does not read: distance, executed_action, physics (in act_kit/steps.parquet)" in notes
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 80, 4)
    steps = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    state = np.concatenate(
        [np.stack(steps[f"observation.{part}"].to_numpy()) for part in ("state", "environment_state")], axis=1
    )
    assert np.array_equal(state, images_store.steps("state").astype(np.float32))
    assert np.array_equal(np.stack(steps["action"].to_numpy()), images_store.steps("action"))
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert episodes["dataset_to_index"] == images_store.episode_ends.tolist()
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert np.allclose(stats["action"]["mean"], images_store.steps("action").mean(axis=0, dtype=np.float64))
    assert np.allclose(stats["action"]["std"], images_store.steps("action").std(axis=0, dtype=np.float64))
    assert stats["action"]["count"] == [images_store.num_steps]
    assert np.shape(stats["observation.images.corner4"]["q50"]) == (3, 1, 1)
    for index, length in enumerate(images_store.episode_lengths):
        video = tmp_path / f"out/videos/observation.images.corner4/chunk-000/file-{index:03d}.mp4"
        with closing(imageio.get_reader(video)) as reader:
            frames = list(reader.iter_data())
        assert len(frames) == length
        rendered = ImageStore(images_store, "corner4").episode(index)
        assert np.abs(np.stack(frames).astype(float) - rendered).mean() < 12


def test_aloha_is_imported(tmp_path: Path) -> None:
    """Fourteen joints and a 480x640 camera, as in the simulated tasks of ACT, ordered by episode number."""
    folder = tmp_path / "sim_transfer_cube_scripted"
    folder.mkdir()
    for number in (0, 2, 10):
        write_aloha_episode(folder / f"episode_{number}.hdf5", seed=number, steps=3 + number % 4)
    notes = run(folder, tmp_path / "out")
    assert "observations/qvel is ignored" in notes
    assert "50 Hz is assumed" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert (store.info.task, store.info.control_hz) == ("sim_transfer_cube_scripted", 50)
    assert store.episode_lengths.tolist() == [3, 5, 5]
    assert store.sources == ["imported"] * 3
    assert store.missing_fields[0] == "init_state"
    with h5py.File(folder / "episode_2.hdf5") as root:
        _, second, _ = store.iter_episodes()
        assert np.array_equal(second.steps["state"], root["observations/qpos"][()].astype(np.float64))
        assert np.array_equal(second.steps["action"], root["action"][()])
        assert np.array_equal(ImageStore(store, "top").episode(1), root["observations/images/top"][()])


def test_compressed_frames_are_imported_as_opencv_decodes_them(tmp_path: Path) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", steps=3)
    compress_episode(tmp_path / "episode_0.hdf5", smooth_frames(3))
    run(tmp_path / "episode_0.hdf5", tmp_path / "out")
    frames = ImageStore(EpisodeStore.open(tmp_path / "out"), "top").episode(0)
    assert np.abs(frames.astype(int) - smooth_frames(3)).max() < 12


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_replay_buffer_is_imported(tmp_path: Path, zipped: bool) -> None:
    if zipped:
        with zarr.storage.ZipStore(tmp_path / "pusht.zarr.zip", mode="w") as zip_store:
            data = write_replay_buffer(zip_store)
    else:
        data = write_replay_buffer(tmp_path / "pusht.zarr")
    notes = run(tmp_path / ("pusht.zarr.zip" if zipped else "pusht.zarr"), tmp_path / "out")
    assert "ignored: keypoint, n_contacts" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert store.info.task == "pusht"
    assert store.episode_ends.tolist() == [4, 7]
    assert np.array_equal(store.steps("state"), data["state"])
    assert np.array_equal(store.steps("action"), data["action"])
    assert np.array_equal(np.concatenate([f for _, f in ImageStore(store, "img").blocks()]), data["img"])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_steps_after_the_last_episode_are_ignored_with_a_note(tmp_path: Path, zarr_format: Literal[2, 3]) -> None:
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(path, zarr_format=zarr_format, state=noise(12, 5), action=noise(9, 2))
    notes = run(path, tmp_path / "out")
    assert "steps after the last episode's end, step 7, are ignored: 5 of state, 2 of action" in notes
    for name in ("state", "action", "img"):
        shape = {"state": (5,), "action": (2,), "img": (32, 32, 3)}[name]
        values = noise(10, *shape) if name != "img" else np.zeros((10, *shape), np.uint8)
        zarr.open_group(path, mode="r+").create_array(f"data/{name}", data=values, overwrite=True)
    assert "3 steps after the last episode's end" in run(path, tmp_path / "again")
    assert EpisodeStore.open(tmp_path / "again").num_steps == 7


def test_frames_with_channels_first_are_imported(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 48), np.uint8)
    depth, narrow, four = noise(7, 32, 48, 1), noise(7, 3, 8, 8), noise(7, 4, 32, 48)
    write_replay_buffer(tmp_path / "pusht.zarr", img=frames, depth=depth, narrow=narrow, four=four)
    notes = run(tmp_path / "pusht.zarr", tmp_path / "out")
    assert "the axes of img, (3, 32, 48), were reordered to height, width, channels" in notes
    for name in ("depth", "narrow", "four"):
        assert f"ignored: {name}, whose shape" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert ImageStore.cameras(store) == ("img",)
    stored = np.concatenate([block for _, block in ImageStore(store, "img").blocks()])
    assert np.array_equal(stored, frames.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("compressors", ["auto", "gzip", "blosc"])
def test_a_replay_buffer_of_format_3_is_imported(tmp_path: Path, compressors: str, zipped: bool) -> None:
    configuration = BLOSC if compressors == "blosc" else {}
    given = None if compressors == "auto" else {"name": compressors, "configuration": configuration}
    path = tmp_path / ("pusht.zip" if zipped else "pusht.zarr")
    if zipped:
        with zarr.storage.ZipStore(path, mode="w") as zip_store:
            data = write_replay_buffer(zip_store, zarr_format=3, compressors=given)
    else:
        data = write_replay_buffer(path, zarr_format=3, compressors=given)
    notes = run(path, tmp_path / "out")
    assert "ignored: keypoint, n_contacts" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert np.array_equal(store.steps("state"), data["state"])
    assert np.array_equal(np.concatenate([f for _, f in ImageStore(store, "img").blocks()]), data["img"])


BLOSC = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "typesize": 4, "blocksize": 0}


def test_the_full_state_of_meta_world_is_preferred(tmp_path: Path) -> None:
    """3D Diffusion Policy's zarr has nine numbers in ``state``, and Meta-World's 39 in ``full_state``."""
    path = tmp_path / "metaworld_basketball_expert.zarr"
    data = write_replay_buffer(path, state=noise(7, 9), full_state=noise(7, 39), action=noise(7, 4))
    notes = run(path, tmp_path / "whole", task="basketball-v3")
    assert "states are read from data/full_state, of shape (39,) (data/state, of shape (9,): --state state)" in notes
    assert "80 Hz is assumed, that of Meta-World" in notes
    num_outside = int((np.abs(data["action"]) > 1).any(axis=1).sum())
    assert 0 < num_outside < 7
    assert f"{num_outside} of 7 actions, in 2 of 2 episodes, are outside [-1, 1]: they are clipped" in notes
    whole = EpisodeStore.open(tmp_path / "whole")
    assert np.array_equal(whole.steps("state"), data["full_state"])
    assert (whole.info.control_hz, whole.info.horizon) == (80, 500)
    notes = run(path, tmp_path / "nine", task="basketball-v3", state="state")
    assert "states are read from data/state, of shape (9,) (data/full_state, of 39: --state full_state)" in notes
    nine = EpisodeStore.open(tmp_path / "nine")
    assert np.array_equal(nine.steps("state"), data["state"])
    assert nine.info.command.endswith("--task basketball-v3 --state state")
    assert "--state full_state" in run(path, tmp_path / "named")
    assert "actions are read from data/n_contacts" in run(path, tmp_path / "action", action="n_contacts")
    with pytest.raises(DatasetError, match=r"lacks data/fullstate; it has action, full_state, .* --state KEY"):
        run(path, tmp_path / "none", state="fullstate")
    with pytest.raises(DatasetError, match="both name action"):
        run(path, tmp_path / "none", state="action")


def test_chunks_of_zeros_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "pusht.zarr"
    state = noise(7, 5)
    state[5:] = 0
    write_replay_buffer(path, state=state)
    (path / "data/state/1.0").unlink()
    notes = run(path, tmp_path / "out")
    assert "1 of 2 chunks of state are not stored: they are read as 0" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert np.array_equal(store.steps("state"), state)
    assert store.info.parents[0]["notes"] == notes.split("; ")
    shown = act("data", "info", tmp_path / "out", check=0).stdout
    assert "chunks of state are not stored" in " ".join(shown.split())


def test_no_chunk_of_an_export_may_be_missing(reach_store: EpisodeStore, tmp_path: Path) -> None:
    run(reach_store.path, tmp_path / "export", "diffusion-policy")
    (tmp_path / "export/data/action/0.0").unlink()
    with pytest.raises(DatasetError, match="data/action lacks chunk files: 0 of 1"):
        run(tmp_path / "export", tmp_path / "out")


def test_ignored_parts_of_a_replay_buffer_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(path)
    (path / ".DS_Store").write_bytes(b"x")
    (path / "data/._img").write_bytes(b"x")
    group = zarr.open_group(path, mode="r+")
    group.create_array("meta/episode_lengths", data=np.array([4, 3]))
    group.create_array("data/obs/velocity", data=noise(7, 2))
    group.attrs["robot"] = "ur5"
    notes = run(path, tmp_path / "out")
    assert "ignored: keypoint, n_contacts, meta/episode_lengths, obs/velocity" in notes.replace(
        "obs/velocity, meta/episode_lengths", "meta/episode_lengths, obs/velocity"
    )
    assert "(4 arrays: neither states, actions nor images)" in notes
    assert "ignored: 1 attributes (robot)" in notes
    assert "2 hidden files are ignored" in notes


def test_ignored_parts_of_hdf5_files_and_their_folder_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "aloha"
    (folder / "more").mkdir(parents=True)
    for number in (0, 2, 10):
        write_aloha_episode(folder / f"episode_{number}.hdf5", steps=3, cameras=())
    with h5py.File(folder / "episode_2.hdf5", "r+") as root:
        root["observations/effort"] = np.zeros((3, 14))
        root["extra/deep/thing"] = np.zeros(3)
        del root["action"]
        root.create_dataset("action", (3, 14), "f4", chunks=(1, 14))[:2] = 1
        root["elsewhere"] = h5py.SoftLink("/action")
        root.attrs["operator"] = "ann"
        root["action"].attrs["unit"] = "rad"
    (folder / "._episode_0.hdf5").write_bytes(b"Mac OS X")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    notes = run(folder, tmp_path / "out")
    assert "observations/qvel is ignored (in 3 of 3 files)" in notes
    for name in ("observations/effort", "extra/deep/thing", "the link elsewhere", "attribute operator"):
        assert f"{name} is ignored (in 1 of 3 files)" in notes
    assert "attribute action/unit is ignored" in notes
    assert "1 of 3 chunks of action in episode_2.hdf5 were never written: they are read as 0.0" in notes
    assert "2 hidden files are ignored: .DS_Store, ._episode_0.hdf5" in notes
    assert "2 other files or folders are ignored: README.md, more" in notes
    assert "8 numbers between 0 and 10 have no file" in notes
    assert EpisodeStore.open(tmp_path / "out").num_episodes == 3
    assert "states are read from observations/effort" in run(
        folder / "episode_2.hdf5", tmp_path / "effort", state="observations/effort"
    )


def test_ignored_metadata_of_a_single_exported_file_is_noted(reach_store: EpisodeStore, tmp_path: Path) -> None:
    run(reach_store.path, tmp_path / "export", "act-hdf5")
    notes = run(tmp_path / "export/episode_3.hdf5", tmp_path / "out")
    assert "act_kit/physics is ignored" in notes
    assert "act_kit.json is for the whole folder" in notes
    with pytest.raises(ActKitError, match="Fix: omit --state"):
        run(reach_store.path, tmp_path / "no", "act-hdf5", state="x")


def test_commands_that_need_missing_data_exit_with_one_line(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "pusht.zarr")
    act("data", "convert", tmp_path / "pusht.zarr", tmp_path / "out", check=0)
    shown = act("data", "info", tmp_path / "out", "--verify", check=0).stdout
    assert "imported, 2 episodes" in shown
    assert "not recorded" in shown
    assert "diffusion-policy" in shown
    for verb in (("data", "verify"), ("render",)):
        done = act(*verb, tmp_path / "out", check=2)
        assert "was imported without" in done.stderr
        assert done.stderr.count("\n") == 1


def test_inputs_and_existing_outputs_are_not_overwritten(reach_store: EpisodeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(reach_store.path, out, "diffusion-policy")
    with pytest.raises(OutputError, match="exists"):
        run(reach_store.path, out, "act-hdf5")
    convert(reach_store.path, out, to="act-hdf5", task="", overwrite=True)
    assert (out / "episode_9.hdf5").exists()
    for inside in (out, out / "deeper", tmp_path):
        with pytest.raises(OutputError, match="overlap"):
            convert(out, inside, to="act_kit", task="", overwrite=True)
    with pytest.raises(DatasetError, match="already"):
        run(out, tmp_path / "again", "act-hdf5")
    with pytest.raises(ActKitError, match="Did you mean 'lerobot'"):
        run(out, tmp_path / "again", "lerobo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
