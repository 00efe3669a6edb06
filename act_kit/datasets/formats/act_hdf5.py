"""Reader and writer of the HDF5 files of ACT (Zhao et al. 2023, arXiv:2304.13705), one per episode.

The layout is that of ``record_sim_episodes.py`` and ``utils.py`` of github.com/tonyzhaozh/act:
``observations/qpos``, ``observations/qvel``, ``observations/images/<camera>``, ``action`` and the attribute ``sim``.
Files of github.com/MarkFzp/act-plus-plus with the attribute ``compress`` can also be read: their frames are JPEGs,
padded with zeros to the longest. Further fields of act_kit are stored in a group ``act_kit``, which both projects
ignore.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from act_kit.datasets.formats.content import (
    EPISODE_BYTES,
    IMAGES,
    SIDECAR,
    Content,
    Keys,
    Layout,
    check_frames,
    check_known,
    check_layout,
    check_steps,
    foreign,
    from_json,
    one_line,
    some,
)
from act_kit.errors import DatasetError
from act_kit.files import read_text, require_regular
from act_kit.rollouts.episode import Episode

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
        return f"{_CAMERAS}/{name.removeprefix(IMAGES)}"
    paths = {"state": keys.state or "observations/qpos", "action": keys.action or "action"}
    return paths.get(name, f"act_kit/{name}")


def find_files(path: Path) -> list[Path]:
    """Return the episode files at ``path``, a file or a folder, ``episode_2`` before ``episode_10``."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if _is_episode(file)]

    def numeric_order(file: Path) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]

    return sorted(files, key=numeric_order)


def _is_episode(file: Path) -> bool:
    return file.suffix in (".hdf5", ".h5") and not file.name.startswith(".") and file.is_file()


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
    known = from_json(path, read_text(sidecar).encode()) if sidecar.is_file() else None
    fields = known.fields if known else ("state", "action")
    layouts, notes, ignored = [], dict[str, None](), Counter[str]()
    for file in files:
        with _opened(file) as root:
            layouts.append(_layout(file, root, fields, keys))
            paths = [_path_of(name, keys) for name in layouts[-1]]
            notes |= dict.fromkeys([] if known else _assumption_notes(root, keys))
            notes |= dict.fromkeys(_unwritten_notes(file, root, paths))
            ignored.update(_find_ignored(root, set(paths), is_export=known is not None))
    lengths = [check_layout(str(file), each, layouts[0]) for file, each in zip(files, layouts, strict=True)]
    cameras = [name.removeprefix(IMAGES) for name in layouts[0] if name.startswith(IMAGES)]
    if known is None:
        known = foreign(task, len(files), cameras, layouts[0], max(lengths), HZ)
        notes[f"the files contain no control frequency: {HZ} Hz is assumed, that of ALOHA"] = None
    check_known(path, known, layouts[0], len(files))
    ignored_notes = [f"{name} is ignored (in {num} of {len(files)} files)" for name, num in ignored.items()]
    if len(ignored_notes) > _MAX_NOTES:
        ignored_notes[_MAX_NOTES:] = [f"{len(ignored_notes) - _MAX_NOTES} more arrays and attributes are ignored"]

    def recordings() -> Iterator[Episode]:
        for file, layout, episode in zip(files, layouts, known.episodes, strict=True):
            with _opened(file) as root:
                steps: dict[str, Any] = {}
                for name in fields:
                    steps[name] = check_steps(str(file), name, _array(file, root, _path_of(name, keys))[()])
                images = {camera: _frames(file, root, camera, layout[IMAGES + camera][0]) for camera in cameras}
            yield replace(episode, **steps, images=images)

    return Content(
        info=known.info,
        num_episodes=len(files),
        recordings=recordings(),
        attempts=known.attempts,
        cameras=known.cameras,
        fingerprint=known.fingerprint,
        notes=[*ignored_notes, *notes, *_folder_notes(path, files)],
    )


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    """Open a file; an error of HDF5 for a damaged file becomes one line."""
    try:
        if require_regular(file).st_size > EPISODE_BYTES:
            raise DatasetError(f"{file} has more than {EPISODE_BYTES} bytes, the maximum for an episode.")
        with h5py.File(file, "r") as root:
            yield root
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{file} is damaged or not HDF5: {one_line(error)}.") from error


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


def _layout(file: Path, root: h5py.File, fields: tuple[str, ...], keys: Keys) -> Layout:
    layout = {name: _array(file, root, _path_of(name, keys)) for name in fields}
    cameras = root.get(_CAMERAS) if _CAMERAS in root else None
    for camera in cameras if isinstance(cameras, h5py.Group) else ():
        if not camera.endswith("_depth"):
            layout[IMAGES + camera] = _array(file, root, f"{_CAMERAS}/{camera}")
    found = {name: (array.shape, array.dtype) for name, array in layout.items()}
    for name, (shape, dtype) in found.items():
        if name.startswith(IMAGES) and root.attrs.get("compress", False):
            if len(shape) != 2 or dtype != np.uint8 or 0 in shape or shape[1] > _JPEG_BYTES:
                raise DatasetError(f"{file}: {name} is {dtype} of shape {shape}; padded JPEGs were expected.")
            found[name] = ((shape[0], *_decode(layout[name][0]).shape), dtype)
    return found


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
            counts = [math.ceil(size / chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
            num = math.prod(counts)
            missing = num - array.id.get_num_chunks()
            if missing > 0:
                chunks = f"{missing} of {num} chunks of {path} in {file.name}"
                yield f"{chunks} were never written: they are read as {array.fillvalue}"


def _find_ignored(root: h5py.File, used: set[str], *, is_export: bool) -> list[str]:
    """Return the names of the arrays, links and attributes that are not read."""
    expected = used | {"compress_len"} | ({"observations/qvel"} if is_export else set())
    attributes = [f"attribute {name}" for name in root.attrs if name not in ("sim", "compress")]
    arrays: list[str] = []

    def visit(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            arrays.append(f"the link {name}")
        elif name not in expected and isinstance(root[name], h5py.Dataset):
            arrays.append(name)
        if isinstance(link, h5py.HardLink):
            attributes.extend(f"attribute {name}/{key}" for key in root[name].attrs)

    root.visititems_links(visit)
    return [*arrays, *attributes]


def _folder_notes(path: Path, files: Sequence[Path]) -> Iterator[str]:
    """Yield notes on other files in the folder and on missing episode numbers."""
    if path.is_file():
        if (path.parent / SIDECAR).is_file():
            yield f"{path.parent / SIDECAR} is for the whole folder and is not read: to use it, convert {path.parent}"
        return
    others = sorted({entry.name for entry in path.iterdir()} - {file.name for file in files} - {SIDECAR})
    hidden = [name for name in others if name.startswith(".")]
    if hidden:
        yield f"{len(hidden)} hidden files are ignored: {some(hidden)}"
    rest = [name for name in others if not name.startswith(".")]
    if rest:
        yield f"{len(rest)} other files or folders are ignored: {some(rest)}"
    numbers = {int(found[1]) for file in files if (found := re.search(r"([0-9]{1,9})$", file.stem))}
    missing = max(numbers, default=-1) + 1 - min(numbers, default=0) - len(numbers)
    if missing > 0:
        yield f"{missing} numbers between {min(numbers)} and {max(numbers)} have no file: episodes are renumbered"


def _frames(file: Path, root: h5py.File, camera: str, shape: tuple[int, ...]) -> np.ndarray:
    array = _array(file, root, f"{_CAMERAS}/{camera}")
    if not root.attrs.get("compress", False):
        return check_frames(str(file), camera, array[()])
    frames = np.empty(shape, np.uint8)
    for step in range(shape[0]):
        frame = _decode(array[step])
        if frame.shape != shape[1:]:
            raise DatasetError(
                f"{file}: frame {step} of {camera} has shape {frame.shape}, the first frame {shape[1:]}."
            )
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
