"""Files that are damaged, hostile or something else: one line that names the file, and nothing is written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_kit.cli.data_convert import convert
from act_kit.datasets.formats.convert import convert as convert_dataset
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError, DatasetError
from tests.conftest import act
from tests.datasets.formats.files import compress_episode, smooth_frames, write_aloha_episode, write_replay_buffer


def assert_refused(path: Path, out: Path, names: str = "") -> None:
    """Require one line that says ``names``, and no trace of an output."""
    with pytest.raises(ActKitError) as caught:
        convert(path, out)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert names in message, message
    assert not out.exists()
    assert not [entry for entry in out.parent.iterdir() if entry.name.startswith(f".{out.name}")]


# -- HDF5 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aloha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small episodes of ALOHA, the second of which is to be damaged."""
    folder = tmp_path_factory.mktemp("aloha") / "data"
    folder.mkdir()
    for number in range(2):
        write_aloha_episode(folder / f"episode_{number}.hdf5", steps=4, seed=number)
        with h5py.File(folder / f"episode_{number}.hdf5", "r+") as root:
            del root["observations/images/top"]
            root["observations/images/top"] = smooth_frames(4)
    return folder


def replace(name: str, **kwargs: object) -> Callable[[h5py.File], None]:
    """Return what puts another array in the place of one."""

    def change(root: h5py.File) -> None:
        del root[name]
        root.create_dataset(name, **kwargs)

    return change


def link(root: h5py.File) -> None:
    root["elsewhere"] = root["action"][()]
    del root["action"]
    root["action"] = h5py.ExternalLink("episode_0.hdf5", "/action")


def soft_link(root: h5py.File) -> None:
    del root["observations"]
    root["observations"] = h5py.SoftLink("/nowhere")


def virtual(root: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 14), np.float32)
    layout[:] = h5py.VirtualSource("episode_0.hdf5", "action", (4, 14))
    del root["action"]
    root.create_virtual_dataset("action", layout)


def nan(root: h5py.File) -> None:
    root["observations/qpos"][2, 3] = np.nan


def drop(name: str) -> Callable[[h5py.File], None]:
    def change(root: h5py.File) -> None:
        del root[name]

    return change


def external(root: h5py.File) -> None:
    del root["action"]
    root.create_dataset("action", (4, 14), np.float32, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


HDF5 = {
    "no actions": (drop("action"), "lacks action"),
    "no observations": (drop("observations"), "lacks observations/qpos"),
    "another camera": (drop("observations/images/top"), "the first episode"),
    "a group for an array": (lambda r: (drop("action")(r), r.create_group("action")), "not an array"),
    "NaN": (nan, "not finite"),
    "too large for float32": (replace("action", data=np.full((4, 14), 1e300)), "not finite"),
    "lengths": (replace("action", data=np.zeros((3, 14))), "state has 4 steps, the actions have 3"),
    "no step": (replace("action", data=np.zeros((0, 14))), "none empty"),
    "widths": (replace("action", data=np.zeros((4, 7))), "the first episode"),
    "ranks": (replace("action", data=np.zeros(4)), "2 axes"),
    "a number": (replace("action", data=1.0), "2 axes"),
    "nothing": (replace("action", data=h5py.Empty("f")), "not an array"),
    "text": (replace("action", data=[[b"x"] * 14] * 4), "2 axes"),
    "a camera with a long name": (
        lambda r: r.move("observations/images/top", "observations/images/" + "a" * 300), "cannot be called"
    ),
    "objects": (replace("action", shape=(4, 14), dtype=h5py.string_dtype()), "never written"),
    "complex": (replace("action", data=np.zeros((4, 14), complex)), "2 axes"),
    "depth for colour": (replace("observations/images/top", data=np.zeros((4, 32, 48), np.uint8)), "4 axes"),
    "four channels": (replace("observations/images/top", data=np.zeros((4, 32, 48, 4), np.uint8)), "3 channels"),
    "another size": (replace("observations/images/top", data=np.zeros((4, 48, 32, 3), np.uint8)), "the first episode"),
    "tiny frames": (replace("observations/images/top", data=np.zeros((4, 3, 3, 3), np.uint8)), "16 to 1024"),
    "frames in [0, 1]": (replace("observations/images/top", data=np.full((4, 32, 48, 3), 0.5)), "0 to 255"),
    "NaN frames": (replace("observations/images/top", data=np.full((4, 32, 48, 3), np.nan)), "0 to 255"),
    "never written": (replace("action", shape=(4, 14), dtype="f4"), "never written"),
    "terabytes": (replace("action", shape=(10**10, 14), dtype="f8", chunks=(100, 14)), "never written"),
    "external link": (link, "links are not followed"),
    "soft link": (soft_link, "links are not followed"),
    "virtual": (virtual, "not an array in this file"),
    "external storage": (external, "not an array in this file"),
    "JPEGs that are none": (lambda r: r.attrs.__setitem__("compress", True), "padded JPEGs"),
}  # fmt: skip


@pytest.mark.parametrize("case", HDF5)
def test_a_changed_hdf5_file_is_refused(aloha: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    change, names = HDF5[case]
    with h5py.File(folder / "episode_1.hdf5", "r+") as root:
        change(root)
    assert_refused(folder, tmp_path / "out", names)


def test_a_compression_bomb_is_refused_before_it_is_unpacked(aloha: Path, tmp_path: Path) -> None:
    """A file of less than a megabyte whose one chunk was written, of 100 GB."""
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    with h5py.File(folder / "episode_1.hdf5", "r+") as root:
        del root["action"]
        root.create_dataset("action", (10**9, 14), "f8", chunks=(1000, 14), compression="gzip")[0] = 1
    assert (folder / "episode_1.hdf5").stat().st_size < 1_000_000
    assert_refused(folder, tmp_path / "out", "declares 112 GB; an episode may have 6 GB")


def test_jpegs_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", steps=3)
    compress_episode(tmp_path / "episode_0.hdf5", smooth_frames(3))
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as root:
        root["observations/images/top"][1, 400:] = 0
    assert_refused(tmp_path / "episode_0.hdf5", tmp_path / "out", "damaged")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cut=st.floats(0, 1), noise=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=5)
)
def test_any_damage_to_hdf5_is_one_line_or_harmless(
    aloha: Path, tmp_path: Path, cut: float, noise: list[tuple[float, bytes]]
) -> None:
    original = (aloha / "episode_0.hdf5").read_bytes()
    damaged = bytearray(original)
    for at, new in noise:
        begin = int(at * 4096)  # where the structure is
        damaged[begin : begin + len(new)] = new
    file, out = tmp_path / "episode_0.hdf5", tmp_path / "out"
    file.write_bytes(damaged if noise else original[: int(cut * len(original))])
    _one_line_or_whole(file, out)


def _one_line_or_whole(path: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    refused = ""
    try:
        convert(path, out)
    except ActKitError as error:
        refused = str(error)
    assert "\n" not in refused
    assert out.exists() == (not refused)
    if not refused:
        assert np.isfinite(EpisodeStore.open(out).steps("state")).all()


# -- zarr --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small replay buffer."""
    path = tmp_path_factory.mktemp("pusht") / "pusht.zarr"
    write_replay_buffer(path)
    return path


def edit(array: str, **changes: object) -> Callable[[Path], None]:
    """Return what changes an array's description."""

    def change(path: Path) -> None:
        file = path / array / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def overwrite(file: str, data: bytes) -> Callable[[Path], None]:
    """Return what puts something else in the place of a file."""
    return lambda path: (path / file).write_bytes(data) and None


def blosc_bomb(path: Path) -> None:
    """Let a chunk claim to unpack to 2 GB."""
    file = path / "data/state/0.0"
    data = bytearray(file.read_bytes())
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)


ENDS = "meta/episode_ends/0"
ZARR = {
    "no state": (lambda p: shutil.rmtree(p / "data/state"), "lacks data/state"),
    "no ends": (lambda p: shutil.rmtree(p / "meta"), "lacks meta/episode_ends"),
    "ends that fall": (overwrite(ENDS, np.array([4, 3]).tobytes()), "must grow"),
    "negative ends": (overwrite(ENDS, np.array([-4, 3]).tobytes()), "must grow"),
    "ends beyond": (overwrite(ENDS, np.array([4, 9]).tobytes()), "the episodes end at step 9"),
    "ends far beyond": (overwrite(ENDS, np.array([4, 2**62]).tobytes()), "the episodes end at step"),
    "ends that are floats": (edit("meta/episode_ends", dtype="<f8"), "one axis of integers"),
    "no description": (overwrite("data/state/.zarray", b"{"), "data/state cannot be read"),
    "a list": (overwrite("data/state/.zarray", b"[1]"), "data/state cannot be read"),
    "no chunk": (lambda p: [file.unlink() for file in p.glob("data/*/[0-9]*")], "lacks chunk files: 0 of 2"),
    "a missing chunk, of no fill value": (
        lambda p: (edit("data/img", fill_value=None)(p), (p / "data/img/1.0.0.0").unlink()), "lacks chunk files: 1 of 2"
    ),
    "a missing chunk of NaN": (
        lambda p: (edit("data/state", fill_value="NaN")(p), (p / "data/state/1.0").unlink()), "not finite"
    ),
    "terabytes of nothing": (
        lambda p: (edit("data/img", shape=[10**9, 96, 96, 3])(p), edit("data/state", shape=[10**9, 5])(p),
                   edit("data/action", shape=[10**9, 2])(p), overwrite(ENDS, np.array([4, 10**9]).tobytes())(p)),
        "an episode may have 6 GB",
    ),
    "a camera with a long name": (lambda p: (p / "data/img").rename(p / "data" / ("a" * 200)), "cannot be called"),
    "missing ends": (lambda p: (p / ENDS).unlink(), "lacks chunk files: 0 of 1"),
    "a short chunk": (lambda p: overwrite("data/state/0.0", (p / "data/state/0.0").read_bytes()[:-9])(p), "truncated"),
    "an empty chunk": (overwrite("data/state/0.0", b""), "truncated"),
    "a long chunk": (overwrite("data/state/0.0", bytes(100_000)), "at most"),
    "a bomb": (blosc_bomb, "truncated, or no chunk of"),
    "other numbers": (edit("data/state", dtype="<f8"), "no chunk of 200 bytes"),
    "objects, pickled": (
        edit("data/state", dtype="|O", filters=[{"id": "pickle", "protocol": 5}]), "data/state cannot be read"
    ),
    "other codecs": (edit("data/img", compressor={"id": "imagecodecs_jpegxl"}), "only blosc, zstd"),
    "ranks": (edit("data/state", shape=[7]), "data/state cannot be read"),
    "huge chunks": (edit("data/state", chunks=[10**12, 5]), "declares chunks of"),
    "negative": (edit("data/state", shape=[-7, 5]), "data/state cannot be read"),
    "no chunks": (edit("data/state", chunks=[0, 5]), "data/state cannot be read"),
    "NaN": (
        lambda p: (edit("data/state", compressor=None, chunks=[7, 5])(p),
                   overwrite("data/state/0.0", np.full((7, 5), np.nan, np.float32).tobytes())(p)), "not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ZARR)
def test_a_changed_replay_buffer_is_refused(pusht: Path, tmp_path: Path, case: str) -> None:
    path = Path(shutil.copytree(pusht, tmp_path / "pusht.zarr"))
    change, names = ZARR[case]
    change(path)
    assert_refused(path, tmp_path / "out", names)


def test_a_long_episode_is_refused_before_it_is_read(pusht: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(pusht, tmp_path / "pusht.zarr"))
    for name in ("state", "action"):
        edit(f"data/{name}", shape=[10**12, 5 if name == "state" else 2])(path)
    edit("data/img", shape=[10**12, 96, 96, 3])(path)
    overwrite(ENDS, np.array([4, 10**12]).tobytes())(path)
    assert_refused(path, tmp_path / "out", "an episode may have 6 GB")


def zip_of(path: Path, out: Path, **replaced: bytes) -> Path:
    """Zip a store, deflated, with other data in the place of some files."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            name = str(entry.relative_to(path))
            file.writestr(name, replaced.get(name, entry.read_bytes()))
    return out


def test_zip_bombs_are_refused(pusht: Path, tmp_path: Path) -> None:
    bomb = zip_of(pusht, tmp_path / "bomb.zarr.zip", **{"data/state/0.0": bytes(200_000_000)})
    assert bomb.stat().st_size < 2_000_000
    assert_refused(bomb, tmp_path / "out", "200000000 bytes")
    both = tmp_path / "both"
    for name in "ab":
        shutil.copytree(pusht, both / name)
    assert_refused(zip_of(both, tmp_path / "two.zip"), tmp_path / "out", "2 replay buffers")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_a_replay_buffer_is_one_line_or_harmless(
    pusht: Path, tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "pusht.zarr", ignore_errors=True)
    path = Path(shutil.copytree(pusht, tmp_path / "pusht.zarr"))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    _one_line_or_whole(path, tmp_path / "out")


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_bombs_in_format_3_are_refused(tmp_path: Path, codec: str) -> None:
    """A chunk that unpacks to a gigabyte and more, where 200 bytes belong."""
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(
        path,
        zarr_format=3,
        compressors={"name": codec, "configuration": {"level": 5} | ({"checksum": False} if codec == "zstd" else {})},
    )
    packed = numcodecs.Zstd().encode(bytes(10**8)) if codec == "zstd" else gzip.compress(bytes(10**8), 9)
    whole = (packed * 20)[: 2 * 100 + 4096] if codec == "gzip" else packed
    (path / "data/state/c/1/0").write_bytes(whole)
    assert_refused(path, tmp_path / "out", "data/state: chunk c/1/0")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_in_format_3_is_one_line_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "pusht.zarr", ignore_errors=True)
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(path, zarr_format=3)
    file = data.draw(st.sampled_from(sorted(file for file in path.rglob("*") if file.is_file())))
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    _one_line_or_whole(path, tmp_path / "out")


# -- neither -----------------------------------------------------------------------------------------------------------


def test_what_is_something_else_is_refused(tmp_path: Path, reach_store: EpisodeStore) -> None:
    assert_refused(tmp_path / "nothing", tmp_path / "out", "nothing at")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", tmp_path / "out", "in no format that is read")
    (tmp_path / "text.txt").write_text("hello")
    assert_refused(tmp_path / "text.txt", tmp_path / "out", "in no format that is read")
    (tmp_path / "text.hdf5").write_text("hello")
    assert_refused(tmp_path / "text.hdf5", tmp_path / "out", "not HDF5")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("hello", "hello")
    assert_refused(tmp_path / "other.zip", tmp_path / "out", "0 replay buffers")


def test_a_pipe_is_not_waited_for(aloha: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hdf5")
    assert_refused(tmp_path / "pipe.hdf5", tmp_path / "out", "in no format that is read")
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    os.mkfifo(folder / "episode_7.hdf5")
    notes = convert_dataset(folder, tmp_path / "out", to="act_kit", task="", overwrite=False)[1].notes
    assert "1 other files or folders are left behind: episode_7.hdf5" in notes


def test_a_companion_that_was_edited_is_refused(reach_store: EpisodeStore, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    convert_dataset(reach_store.path, path, to="act-hdf5", task="", overwrite=False)
    companion = path / "act_kit.json"
    original = json.loads(companion.read_text())
    edits: list[dict[str, object]] = [
        {"version": 2},
        {"info": {}},
        {"info": original["info"] | {"control_hz": 0}},
        {"info": original["info"] | {"task": "../../elsewhere"}},
        {"info": original["info"] | {"task": "a" * 300}},
        {"fields": ["state"]},
        {"episodes": original["episodes"][:-1]},
        {"episodes": [{"init_state": [1.0], "source": "x", "attempt": 0}, *original["episodes"][1:]]},
        {"cameras": {"corner4": {"settings": {"height_px": 1}, "renderer": ""}}},
        {"cameras": {"corner4": {"settings": {}, "renderer": ""}}},
    ]
    for changes in edits:
        companion.write_text(json.dumps(original | changes))
        assert_refused(path, tmp_path / "out", "act_kit.json is")
    companion.unlink()
    convert_dataset(path, tmp_path / "out", to="act_kit", task="reach-v3", overwrite=False)
    assert EpisodeStore.open(tmp_path / "out").lacks[0] == "init_state"


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "episode_0.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    done = act("data", "convert", tmp_path / "episode_0.hdf5", tmp_path / "out", check=2)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError):
        EpisodeStore.open(tmp_path / "out")
