"""The HDF5 files of ACT (Zhao et al. 2023, arXiv:2304.13705), one per episode, in and out.

The layout is what ``record_sim_episodes.py`` of github.com/tonyzhaozh/act writes and its ``utils.py`` reads:
``observations/qpos``, ``observations/qvel``, ``observations/images/<camera>``, ``action`` and the attribute ``sim``.
Of github.com/MarkFzp/act-plus-plus, files with the attribute ``compress`` are read too: their frames are JPEGs, padded
with zeros to the longest. What else act_kit records goes to a group ``act_kit``, which neither of them looks at.
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
from act_kit.rollouts.episode import Recording

HZ = 50
"""Of ALOHA: ``DT`` in ACT's ``constants.py``. The files do not say."""

_NOTES = 12
"""Arrays and attributes that are named as left behind; of more, their number is said."""
_CAMERAS = "observations/images"
_JPEG_BYTES = 4_000_000
"""The most that a frame may take: as much as the largest, 1024x1024, uncompressed."""


def _path_of(name: str, keys: Keys) -> str:
    """Return where an array of a :data:`Layout` is in a file."""
    if name.startswith(IMAGES):
        return f"{_CAMERAS}/{name.removeprefix(IMAGES)}"
    paths = {"state": keys.state or "observations/qpos", "action": keys.action or "action"}
    return paths.get(name, f"act_kit/{name}")


def find_files(path: Path) -> list[Path]:
    """Return the episodes at ``path``, a file or a folder of them: ``episode_2`` comes before ``episode_10``."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if _is_episode(file)]
    return sorted(files, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def _is_episode(file: Path) -> bool:
    return file.suffix in (".hdf5", ".h5") and not file.name.startswith(".") and file.is_file()


# -- in ----------------------------------------------------------------------------------------------------------------


def read(path: Path, task: str, keys: Keys) -> Content:
    """Open the episodes at ``path`` and check what they declare; they are read one at a time, later.

    Args:
        path: A file, or a folder of them.
        task: What the task is called where the data do not say.
        keys: The paths of the arrays to take for states and actions.

    Raises:
        DatasetError: A file is damaged, is something else, or does not go with the others.
    """
    files = find_files(path)
    sidecar = path / SIDECAR
    known = from_json(path, read_text(sidecar).encode()) if sidecar.is_file() else None
    fields = known.fields if known else ("state", "action")
    layouts, notes, left = [], dict[str, None](), Counter[str]()
    for file in files:
        with _opened(file) as root:
            layouts.append(_layout(file, root, fields, keys))
            notes |= dict.fromkeys([] if known else _notes(root, keys))
            notes |= dict.fromkeys(_unwritten(file, root, [_path_of(name, keys) for name in layouts[-1]]))
            left.update(_left(root, {*(_path_of(name, keys) for name in layouts[-1])}, is_ours=known is not None))
    lengths = [check_layout(str(file), each, layouts[0]) for file, each in zip(files, layouts, strict=True)]
    cameras = [name.removeprefix(IMAGES) for name in layouts[0] if name.startswith(IMAGES)]
    if known is None:
        known = foreign(task, len(files), cameras, layouts[0], max(lengths), HZ)
        notes[f"the files name no rate: {HZ} Hz is assumed, ALOHA's"] = None
    check_known(path, known, layouts[0], len(files))
    left_behind = [f"{what} is left behind (in {num} of {len(files)} files)" for what, num in left.items()]
    if len(left_behind) > _NOTES:
        left_behind[_NOTES:] = [f"{len(left_behind) - _NOTES} more arrays and attributes are left behind"]

    def recordings() -> Iterator[Recording]:
        for file, layout, episode in zip(files, layouts, known.episodes, strict=True):
            with _opened(file) as root:
                steps = {n: check_steps(str(file), n, _array(file, root, _path_of(n, keys))[()]) for n in fields}
                images = {c: _frames(file, root, c, layout[IMAGES + c][0]) for c in cameras}
            yield replace(episode, steps=steps, images=images)

    return Content(
        info=known.info,
        num_episodes=len(files),
        recordings=recordings(),
        attempts=known.attempts,
        cameras=known.cameras,
        fingerprint=known.fingerprint,
        notes=[*left_behind, *notes, *_beside(path, files)],
    )


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    """Open a file; whatever HDF5 says of a damaged one becomes one line."""
    try:
        if require_regular(file).st_size > EPISODE_BYTES:
            raise DatasetError(f"{file} has more than {EPISODE_BYTES} bytes: no episode has.")
        with h5py.File(file, "r") as root:
            yield root
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{file} is damaged, or not HDF5: {one_line(error)}.") from error


def _array(file: Path, root: h5py.File, path: str) -> h5py.Dataset:
    """Return an array that is in this very file, all of it."""
    at: Any = root
    for part in path.split("/"):
        if not isinstance(at, h5py.Group) or part not in at:
            raise DatasetError(f"{file} lacks {path}: it is not an episode as ACT records them.")
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            raise DatasetError(f"{file}: {path} is a link, and links are not followed.")
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


def _notes(root: h5py.File, keys: Keys) -> Iterator[str]:
    """Say what is assumed of data that others recorded."""
    if keys.state:
        yield f"states are those of {keys.state}"
    if keys.action:
        yield f"actions are those of {keys.action}"
    if root[_path_of("action", keys)].dtype == np.float64:
        yield "actions are rounded to float32"
    if not root.attrs.get("sim", False):
        yield "of a real robot, ACT takes actions from one step earlier; here they stay where they are"


def _unwritten(file: Path, root: h5py.File, paths: Sequence[str]) -> Iterator[str]:
    """Say which chunks were never written: HDF5 reads them as the fill value."""
    for path in paths:
        array = root[path]
        if array.chunks is not None:
            num = math.prod(math.ceil(size / chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
            lacking = num - array.id.get_num_chunks()
            if lacking > 0:
                what = f"{lacking} of {num} chunks of {path} in {file.name}"
                yield f"{what} were never written: they were read as {array.fillvalue}"


def _left(root: h5py.File, taken: set[str], *, is_ours: bool) -> list[str]:
    """Name the arrays, links and attributes that are not read."""
    known = {*taken, "compress_len", *(["observations/qvel"] if is_ours else [])}
    attributes = [f"attribute {name}" for name in root.attrs if name not in ("sim", "compress")]
    arrays: list[str] = []

    def visit(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            arrays.append(f"the link {name}")
        elif name not in known and isinstance(root[name], h5py.Dataset):
            arrays.append(name)
        if isinstance(link, h5py.HardLink):
            attributes.extend(f"attribute {name}/{key}" for key in root[name].attrs)

    root.visititems_links(visit)
    return [*arrays, *attributes]


def _beside(path: Path, files: Sequence[Path]) -> Iterator[str]:
    """Say what in the folder is not read, and which numbers lack."""
    if path.is_file():
        if (path.parent / SIDECAR).is_file():
            yield f"{path.parent / SIDECAR} is about the whole folder, and was not read: convert {path.parent}"
        return
    others = sorted({entry.name for entry in path.iterdir()} - {file.name for file in files} - {SIDECAR})
    hidden = [name for name in others if name.startswith(".")]
    if hidden:
        yield f"{len(hidden)} hidden files were skipped: {some(hidden)}"
    rest = [name for name in others if not name.startswith(".")]
    if rest:
        yield f"{len(rest)} other files or folders are left behind: {some(rest)}"
    numbers = {int(found[1]) for file in files if (found := re.search(r"([0-9]{1,9})$", file.stem))}
    missing = max(numbers, default=-1) + 1 - min(numbers, default=0) - len(numbers)
    if missing > 0:
        yield f"{missing} numbers between {min(numbers)} and {max(numbers)} have no file: episodes are numbered anew"


def _frames(file: Path, root: h5py.File, camera: str, shape: tuple[int, ...]) -> np.ndarray:
    array = _array(file, root, f"{_CAMERAS}/{camera}")
    if not root.attrs.get("compress", False):
        return check_frames(str(file), camera, array[()])
    frames = np.empty(shape, np.uint8)
    for step in range(shape[0]):
        frame = _decode(array[step])
        if frame.shape != shape[1:]:
            raise DatasetError(f"{file}: frame {step} of {camera} has shape {frame.shape}, the first {shape[1:]}.")
        frames[step] = frame
    return frames


def _decode(jpeg: np.ndarray) -> np.ndarray:
    """Decode a frame, uint8 (H, W, 3), with its channels as ACT gets them: OpenCV encoded and decodes it, as BGR."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]) as image:
        if max(image.size) > 1024:
            raise DatasetError(f"A frame of {image.height}x{image.width} is out of range: 16 to 1024 px.")
        return np.asarray(image.convert("RGB"))[..., ::-1]


# -- out ---------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes into a new folder ``path``; return what the format cannot hold."""
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
    notes = ["qpos is the whole state, and qvel zeros: joints were not recorded (ACT reads qvel, but does not use it)"]
    if len(lengths) > 1:
        notes.append("the episodes differ in length: act-plus-plus takes them, the first ACT needs equal ones")
    return notes
