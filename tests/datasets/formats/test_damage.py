"""Damaged, malicious and unsupported files: an error of one line that names the file, and no output."""

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

from act_kit.datasets.formats.convert import convert as convert_dataset
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from tests.conftest import act
from tests.datasets.formats.checks import assert_rejected, require_one_line_or_valid_dataset
from tests.datasets.formats.files import compress_episode, smooth_frames, write_aloha_episode, write_replay_buffer

# -- HDF5 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aloha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small ALOHA episodes; tests damage the second."""
    folder = tmp_path_factory.mktemp("aloha") / "data"
    folder.mkdir()
    for number in range(2):
        write_aloha_episode(folder / f"episode_{number}.hdf5", steps=4, seed=number)
        with h5py.File(folder / f"episode_{number}.hdf5", "r+") as root:
            del root["observations/images/top"]
            root["observations/images/top"] = smooth_frames(4)
    return folder


def replace(name: str, **kwargs: object) -> Callable[[h5py.File], None]:
    """Return a function that replaces an array."""

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
        lambda r: r.move("observations/images/top", "observations/images/" + "a" * 300),
        "is not a valid camera name",
    ),
    "objects": (replace("action", shape=(4, 14), dtype=h5py.string_dtype()), "never written"),
    "complex": (replace("action", data=np.zeros((4, 14), complex)), "2 axes"),
    "depth for color": (replace("observations/images/top", data=np.zeros((4, 32, 48), np.uint8)), "4 axes"),
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
}


@pytest.mark.parametrize("case", HDF5)
def test_an_invalid_hdf5_file_is_rejected(aloha: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    change, expected = HDF5[case]
    with h5py.File(folder / "episode_1.hdf5", "r+") as root:
        change(root)
    assert_rejected(folder, tmp_path / "out", expected)


def test_a_compression_bomb_is_rejected_before_decompression(aloha: Path, tmp_path: Path) -> None:
    """The file has less than a megabyte: one chunk of 100 GB is written."""
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    with h5py.File(folder / "episode_1.hdf5", "r+") as root:
        del root["action"]
        root.create_dataset("action", (10**9, 14), "f8", chunks=(1000, 14), compression="gzip")[0] = 1
    assert (folder / "episode_1.hdf5").stat().st_size < 1_000_000
    assert_rejected(folder, tmp_path / "out", "declares 112 GB; an episode may have 6 GB")


def test_truncated_jpegs_are_rejected(tmp_path: Path) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", steps=3)
    compress_episode(tmp_path / "episode_0.hdf5", smooth_frames(3))
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as root:
        root["observations/images/top"][1, 400:] = 0
    assert_rejected(tmp_path / "episode_0.hdf5", tmp_path / "out", "damaged")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cut=st.floats(0, 1), noise=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=5)
)
def test_damaged_hdf5_gives_one_line_or_a_valid_dataset(
    aloha: Path, tmp_path: Path, cut: float, noise: list[tuple[float, bytes]]
) -> None:
    original = (aloha / "episode_0.hdf5").read_bytes()
    damaged = bytearray(original)
    for at, new in noise:
        begin = int(at * 4096)  # where the structure is
        damaged[begin : begin + len(new)] = new
    file, out = tmp_path / "episode_0.hdf5", tmp_path / "out"
    file.write_bytes(damaged if noise else original[: int(cut * len(original))])
    require_one_line_or_valid_dataset(file, out)


# -- zarr --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small replay buffer."""
    path = tmp_path_factory.mktemp("pusht") / "pusht.zarr"
    write_replay_buffer(path)
    return path


def edit(array: str, **changes: object) -> Callable[[Path], None]:
    """Return a function that edits the metadata of an array."""

    def change(path: Path) -> None:
        file = path / array / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def overwrite(file: str, data: bytes) -> Callable[[Path], None]:
    """Return a function that overwrites a file."""

    def damage(path: Path) -> None:
        (path / file).write_bytes(data)

    return damage


def blosc_bomb(path: Path) -> None:
    """Declare an uncompressed size of 2 GB in a chunk."""
    file = path / "data/state/0.0"
    data = bytearray(file.read_bytes())
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)


ENDS = "meta/episode_ends/0"
ZARR = {
    "no state": (lambda p: shutil.rmtree(p / "data/state"), "lacks data/state"),
    "no ends": (lambda p: shutil.rmtree(p / "meta"), "lacks meta/episode_ends"),
    "ends that fall": (overwrite(ENDS, np.array([4, 3]).tobytes()), "must increase"),
    "negative ends": (overwrite(ENDS, np.array([-4, 3]).tobytes()), "must increase"),
    "ends beyond": (overwrite(ENDS, np.array([4, 9]).tobytes()), "the episodes end at step 9"),
    "ends far beyond": (overwrite(ENDS, np.array([4, 2**62]).tobytes()), "the episodes end at step"),
    "ends that are floats": (edit("meta/episode_ends", dtype="<f8"), "one axis of integers"),
    "no description": (overwrite("data/state/.zarray", b"{"), "data/state cannot be read"),
    "a list": (overwrite("data/state/.zarray", b"[1]"), "data/state cannot be read"),
    "no chunk": (lambda p: [file.unlink() for file in p.glob("data/*/[0-9]*")], "lacks chunk files: 0 of 2"),
    "a missing chunk, of no fill value": (
        lambda p: (edit("data/img", fill_value=None)(p), (p / "data/img/1.0.0.0").unlink()),
        "lacks chunk files: 1 of 2",
    ),
    "a missing chunk of NaN": (
        lambda p: (edit("data/state", fill_value="NaN")(p), (p / "data/state/1.0").unlink()),
        "not finite",
    ),
    "terabytes of nothing": (
        lambda p: (
            edit("data/img", shape=[10**9, 96, 96, 3])(p),
            edit("data/state", shape=[10**9, 5])(p),
            edit("data/action", shape=[10**9, 2])(p),
            overwrite(ENDS, np.array([4, 10**9]).tobytes())(p),
        ),
        "an episode may have 6 GB",
    ),
    "a camera with a long name": (
        lambda p: (p / "data/img").rename(p / "data" / ("a" * 200)),
        "is not a valid camera name",
    ),
    "missing ends": (lambda p: (p / ENDS).unlink(), "lacks chunk files: 0 of 1"),
    "a short chunk": (lambda p: overwrite("data/state/0.0", (p / "data/state/0.0").read_bytes()[:-9])(p), "truncated"),
    "an empty chunk": (overwrite("data/state/0.0", b""), "truncated"),
    "a long chunk": (overwrite("data/state/0.0", bytes(100_000)), "at most"),
    "a bomb": (blosc_bomb, "truncated, or not a chunk of"),
    "other numbers": (edit("data/state", dtype="<f8"), "not a chunk of 200 bytes"),
    "objects, pickled": (
        edit("data/state", dtype="|O", filters=[{"id": "pickle", "protocol": 5}]),
        "data/state cannot be read",
    ),
    "other codecs": (edit("data/img", compressor={"id": "imagecodecs_jpegxl"}), "only blosc, zstd"),
    "ranks": (edit("data/state", shape=[7]), "data/state cannot be read"),
    "huge chunks": (edit("data/state", chunks=[10**12, 5]), "declares chunks of"),
    "negative": (edit("data/state", shape=[-7, 5]), "data/state cannot be read"),
    "no chunks": (edit("data/state", chunks=[0, 5]), "data/state cannot be read"),
    "NaN": (
        lambda p: (
            edit("data/state", compressor=None, chunks=[7, 5])(p),
            overwrite("data/state/0.0", np.full((7, 5), np.nan, np.float32).tobytes())(p),
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", ZARR)
def test_an_invalid_replay_buffer_is_rejected(pusht: Path, tmp_path: Path, case: str) -> None:
    path = Path(shutil.copytree(pusht, tmp_path / "pusht.zarr"))
    change, expected = ZARR[case]
    change(path)
    assert_rejected(path, tmp_path / "out", expected)


def test_an_oversized_episode_is_rejected_before_it_is_read(pusht: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(pusht, tmp_path / "pusht.zarr"))
    for name in ("state", "action"):
        edit(f"data/{name}", shape=[10**12, 5 if name == "state" else 2])(path)
    edit("data/img", shape=[10**12, 96, 96, 3])(path)
    overwrite(ENDS, np.array([4, 10**12]).tobytes())(path)
    assert_rejected(path, tmp_path / "out", "an episode may have 6 GB")


def zip_of(path: Path, out: Path, **replaced: bytes) -> Path:
    """Zip a folder, compressed, with the content of some files replaced."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            name = str(entry.relative_to(path))
            file.writestr(name, replaced.get(name, entry.read_bytes()))
    return out


def test_zip_bombs_are_rejected(pusht: Path, tmp_path: Path) -> None:
    bomb = zip_of(pusht, tmp_path / "bomb.zarr.zip", **{"data/state/0.0": bytes(200_000_000)})
    assert bomb.stat().st_size < 2_000_000
    assert_rejected(bomb, tmp_path / "out", "200000000 bytes")
    both = tmp_path / "both"
    for name in "ab":
        shutil.copytree(pusht, both / name)
    assert_rejected(zip_of(both, tmp_path / "two.zip"), tmp_path / "out", "2 replay buffers")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_replay_buffer_gives_one_line_or_a_valid_dataset(
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
    require_one_line_or_valid_dataset(path, tmp_path / "out")


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_compression_bombs_in_format_3_are_rejected(tmp_path: Path, codec: str) -> None:
    """A chunk decompresses to more than a gigabyte instead of 200 bytes."""
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(
        path,
        zarr_format=3,
        compressors={"name": codec, "configuration": {"level": 5} | ({"checksum": False} if codec == "zstd" else {})},
    )
    compressed = numcodecs.Zstd().encode(bytes(10**8)) if codec == "zstd" else gzip.compress(bytes(10**8), 9)
    chunk = (compressed * 20)[: 2 * 100 + 4096] if codec == "gzip" else compressed
    (path / "data/state/c/1/0").write_bytes(chunk)
    assert_rejected(path, tmp_path / "out", "data/state: chunk c/1/0")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_in_format_3_gives_one_line_or_a_valid_dataset(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "pusht.zarr", ignore_errors=True)
    path = tmp_path / "pusht.zarr"
    write_replay_buffer(path, zarr_format=3)
    file = data.draw(st.sampled_from(sorted(file for file in path.rglob("*") if file.is_file())))
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    require_one_line_or_valid_dataset(path, tmp_path / "out")


# -- other files -------------------------------------------------------------------------------------------------------


def test_unsupported_files_are_rejected(tmp_path: Path, reach_store: EpisodeStore) -> None:
    assert_rejected(tmp_path / "nothing", tmp_path / "out", "does not exist")
    (tmp_path / "empty").mkdir()
    assert_rejected(tmp_path / "empty", tmp_path / "out", "in no supported format")
    (tmp_path / "text.txt").write_text("hello")
    assert_rejected(tmp_path / "text.txt", tmp_path / "out", "in no supported format")
    (tmp_path / "text.hdf5").write_text("hello")
    assert_rejected(tmp_path / "text.hdf5", tmp_path / "out", "not HDF5")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("hello", "hello")
    assert_rejected(tmp_path / "other.zip", tmp_path / "out", "0 replay buffers")


def test_pipes_are_not_read(aloha: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hdf5")
    assert_rejected(tmp_path / "pipe.hdf5", tmp_path / "out", "in no supported format")
    folder = Path(shutil.copytree(aloha, tmp_path / "data"))
    os.mkfifo(folder / "episode_7.hdf5")
    notes = convert_dataset(folder, tmp_path / "out", to="act_kit", task="", overwrite=False)[1][0].notes
    assert "1 other files or folders are ignored: episode_7.hdf5" in notes


def test_an_invalid_act_kit_json_is_rejected(reach_store: EpisodeStore, tmp_path: Path) -> None:
    path = tmp_path / "export"
    convert_dataset(reach_store.path, path, to="act-hdf5", task="", overwrite=False)
    sidecar = path / "act_kit.json"
    original = json.loads(sidecar.read_text())
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
        sidecar.write_text(json.dumps(original | changes))
        assert_rejected(path, tmp_path / "out", "act_kit.json is")
    sidecar.unlink()
    convert_dataset(path, tmp_path / "out", to="act_kit", task="reach-v3", overwrite=False)
    assert EpisodeStore.open(tmp_path / "out").missing_fields[0] == "init_state"


def test_the_command_exits_with_one_line_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "episode_0.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    done = act("data", "convert", tmp_path / "episode_0.hdf5", tmp_path / "out", check=2)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError):
        EpisodeStore.open(tmp_path / "out")
