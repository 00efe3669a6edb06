"""Reader and writer of the HDF5 files of ACT (Zhao et al. 2023, arXiv:2304.13705), one per episode.

The layout is that of ``record_sim_episodes.py`` and ``utils.py`` of github.com/tonyzhaozh/act:
``observations/qpos``, ``observations/qvel``, ``observations/images/<camera>``, ``action`` and the attribute ``sim``.
Files of github.com/MarkFzp/act-plus-plus with the attribute ``compress`` can also be read: their frames are JPEGs,
padded with zeros to the longest. Further fields of act_kit are stored in a group ``act_kit``, which both projects
ignore.
"""

from __future__ import annotations

import fnmatch
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.formats import content as checks
from act_kit.datasets.formats.content import IMAGES, SIDECAR, Content, Keys, Layout, some
from act_kit.errors import DatasetError
from act_kit.files import read_text, require_regular

HZ = 50
"""Control frequency of ALOHA: ``DT`` in ACT's ``constants.py``. The files do not contain it."""

_MAX_NOTES = 12
"""Maximum number of ignored arrays and attributes that are named; beyond it, only their number is given."""
_CAMERAS = "observations/images"
_JPEG_BYTES = 4_000_000
"""Maximum size of a compressed frame: more than that of the largest uncompressed one, 1024x1024."""


def _path_of(name: str, keys: Keys) -> str:
    """Return the path of an array of a :data:`Layout` in a file."""
    if name.startswith(IMAGES):
        return f"observations/{name}"
    paths = {"state": keys.state or "observations/qpos", "action": keys.action or "action"}
    return paths.get(name, f"act_kit/{name}")


def find_files(path: Path) -> list[Path]:
    """Return the episode files at ``path``, a file or a folder, ``episode_2`` before ``episode_10``."""
    if path.is_file():
        return [path]
    files = [file for file in path.glob("[!.]*") if file.suffix in (".hdf5", ".h5") and file.is_file()]
    return sorted(files, key=_numeric_order)


def _numeric_order(file: Path) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path, task: str, keys: Keys) -> Content:
    """Open the episodes at ``path`` and check their declarations; the data is read later, one episode at a time.

    Args:
        path: File, or folder of files.
        task: Task name for data without one.
        keys: Paths of the arrays to use as states and actions.

    Raises:
        DatasetError: A file is damaged or not an ACT episode, or the files are inconsistent.
    """
    files = find_files(path)
    sidecar = path / SIDECAR
    known = checks.from_json(path, read_text(sidecar).encode() if sidecar.is_file() else None)
    fields = known.fields if known else ("state", "action")
    layouts: list[Layout] = []
    notes, ignored = dict[str, None](), Counter[str]()
    for file in files:
        with _opened(file) as root:
            layouts.append(_layout(file, root, fields, keys))
            paths = [_path_of(name, keys) for name in layouts[-1]]
            notes |= dict.fromkeys([] if known else _assumption_notes(root, keys))
            notes |= dict.fromkeys(_unwritten_notes(file, root, paths))
            ignored.update(_find_ignored(root, {*paths, "compress_len"}, is_export=known is not None))
        checks.check_layout(str(file), layouts[-1], layouts[0])
    longest = max(layouts, key=lambda layout: layout["action"][0][0])
    content = known or checks.foreign(task, len(files), longest, HZ, "ALOHA")
    checks.check_content(path, content, longest, len(files))
    ignored_notes = [f"{name} is ignored (in {num} of {len(files)} files)" for name, num in ignored.items()]
    if len(ignored_notes) > _MAX_NOTES:
        ignored_notes[_MAX_NOTES:] = [f"{len(ignored_notes) - _MAX_NOTES} more arrays and attributes are ignored"]

    def read_array(index: int, name: str) -> np.ndarray:
        with _opened(files[index]) as root:
            array = _array(files[index], root, _path_of(name, keys))
            shape, _ = layouts[index][name]
            return np.asarray(array[()]) if array.shape == shape else _decode_all(files[index], array, shape)

    recordings = checks.read_episodes(content, longest, lambda index: str(files[index]), read_array)
    all_notes = [*ignored_notes, *notes, *content.notes, *_folder_notes(path, files)]
    content = replace(content, recordings=recordings, notes=all_notes)
    return content if known else checks.clip_actions(content, (read_array(i, "action") for i in range(len(files))))


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    with as_dataset_error(f"{file} is damaged or not HDF5"):
        if require_regular(file).st_size > checks.EPISODE_BYTES:
            raise DatasetError(f"{file} has more than {checks.EPISODE_BYTES} bytes, the maximum for an episode.")
        with h5py.File(file, "r") as root:
            yield root


def _array(file: Path, root: h5py.File, path: str) -> h5py.Dataset:
    """Return an array that is stored completely in this file."""
    at: Any = root
    for part in path.split("/"):
        if not isinstance(at, h5py.Group) or part not in at:
            raise DatasetError(f"{file} lacks {path}: it is not an episode recorded by ACT.")
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            raise DatasetError(f"{file}: {path} is a link; links are not followed.")
        at = at[part]
    if not isinstance(at, h5py.Dataset) or at.shape is None or at.external or at.is_virtual:
        raise DatasetError(f"{file}: {path} is not an array in this file.")
    if at.size and at.id.get_storage_size() == 0:
        raise DatasetError(f"{file}: {path} declares shape {at.shape}, but was never written.")
    return at


def _layout(file: Path, root: h5py.File, fields: Sequence[str], keys: Keys) -> Layout:
    cameras = root.get(_CAMERAS) if _CAMERAS in root else None
    names = [*fields]
    if isinstance(cameras, h5py.Group):
        names += [IMAGES + camera for camera in cameras if not camera.endswith("_depth")]
    layout = {}
    for name in names:
        array = _array(file, root, _path_of(name, keys))
        shape = array.shape
        if name.startswith(IMAGES) and root.attrs.get("compress", False):
            if array.ndim != 2 or array.dtype != np.uint8 or 0 in shape or shape[1] > _JPEG_BYTES:
                raise DatasetError(f"{file}: {name} is {array.dtype} of shape {shape}; padded JPEGs were expected.")
            shape = (shape[0], *_decode(array[0]).shape)
        layout[name] = (shape, array.dtype)
    return layout


def _assumption_notes(root: h5py.File, keys: Keys) -> Iterator[str]:
    """Yield notes on assumptions about data that act_kit did not record."""
    if keys.state:
        yield f"states are read from {keys.state}"
    if keys.action:
        yield f"actions are read from {keys.action}"
    if root[_path_of("action", keys)].dtype == np.float64:
        yield "actions are rounded to float32"
    if not root.attrs.get("sim", False):
        yield "for a real robot, ACT shifts actions by one step; here they are not shifted"


def _unwritten_notes(file: Path, root: h5py.File, paths: Sequence[str]) -> Iterator[str]:
    """Yield notes on chunks that were never written, which HDF5 reads as the fill value."""
    for path in paths:
        array = root[path]
        if array.chunks is not None:
            num = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
            missing = num - array.id.get_num_chunks()
            if missing > 0:
                chunks = f"{missing} of {num} chunks of {path} in {file.name}"
                yield f"{chunks} were never written: they are read as {array.fillvalue}"


def _find_ignored(root: h5py.File, used: set[str], *, is_export: bool) -> list[str]:
    """Return the names of the arrays, links and attributes that are not read."""
    used = used | {"observations/qvel"} if is_export else used
    attributes = [f"attribute {name}" for name in root.attrs if name not in ("sim", "compress")]
    arrays: list[str] = []

    def visit(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            arrays.append(f"the link {name}")
            return
        if name not in used and isinstance(root[name], h5py.Dataset):
            arrays.append(name)
        attributes.extend(f"attribute {name}/{key}" for key in root[name].attrs)

    root.visititems_links(visit)
    return [*arrays, *attributes]


def _folder_notes(path: Path, files: Sequence[Path]) -> Iterator[str]:
    """Yield notes on other files in the folder and on missing episode numbers."""
    if path.is_file():
        if (path.parent / SIDECAR).is_file():
            yield f"{path.parent / SIDECAR} is for the whole folder and is not read: to use it, convert {path.parent}"
        return
    others = set(os.listdir(path)).difference([SIDECAR], map(os.path.basename, files))
    hidden = sorted(fnmatch.filter(others, ".*"))
    if hidden:
        yield f"{len(hidden)} hidden files are ignored: {some(hidden)}"
    rest = sorted(others.difference(hidden))
    if rest:
        yield f"{len(rest)} other files or folders are ignored: {some(rest)}"
    numbers: set[int] = set()
    for file in files:
        numbers.update(map(int, re.findall(r"[0-9]{1,9}$", file.stem)))
    missing = max(numbers, default=-1) + 1 - min(numbers, default=0) - len(numbers)
    if missing > 0:
        yield f"{missing} numbers between {min(numbers)} and {max(numbers)} have no file: episodes are renumbered"


def _decode_all(file: Path, jpegs: h5py.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    frames = np.empty(shape, np.uint8)
    for step in range(shape[0]):
        frame = _decode(jpegs[step])
        if frame.shape != shape[1:]:
            raise DatasetError(f"{file}: frame {step} has shape {frame.shape}, the first frame {shape[1:]}.")
        frames[step] = frame
    return frames


def _decode(jpeg: np.ndarray) -> np.ndarray:
    """Decode a frame, uint8 (H, W, 3), in the channel order of ACT: OpenCV encodes and decodes it as BGR."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]) as image:
        if max(image.size) > 1024:
            raise DatasetError(f"A frame of {image.height}x{image.width} is out of range: 16 to 1024 px.")
        return np.asarray(image.convert("RGB"))[..., ::-1]


# -- writing -----------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes to a new folder ``path``; return notes on data that the format cannot store."""
    path.mkdir(exist_ok=True)
    lengths = set()
    for index, recording in enumerate(content.recordings):
        lengths.add(len(recording))
        with h5py.File(path / f"episode_{index}.hdf5", "w") as root:
            root.attrs["sim"] = True
            for name, values in recording.steps.items():
                root[_path_of(name, Keys())] = values
            root["observations/qvel"] = np.zeros_like(recording.steps["state"])
            for camera, frames in recording.images.items():
                root.create_dataset(f"{_CAMERAS}/{camera}", data=frames, chunks=(1, *frames.shape[1:]))
    notes = ["qpos is the whole state and qvel is zero: joints were not recorded (ACT reads qvel but does not use it)"]
    if len(lengths) > 1:
        notes.append("the episodes differ in length: act-plus-plus reads them, the original ACT needs equal lengths")
    return notes
