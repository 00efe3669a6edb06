"""Reader and writer of the replay buffers of diffusion policy (Chi et al. 2023, arXiv:2303.04137).

The layout is that of ``ReplayBuffer`` in github.com/real-stanford/diffusion_policy: a zarr group with the steps of all
episodes, one after the other, in ``data/state``, ``data/action``, ``data/<camera>``, and with ``meta/episode_ends``. It
is distributed as a folder or a zipped folder, in zarr format 2 or 3.

Buffers are written with zarr, in format 2. Files to be read are untrusted, so they are parsed in ``zarr_files.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

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
from act_kit.datasets.formats.zarr_files import ZarrArray, ZarrFiles, open_files
from act_kit.errors import DatasetError
from act_kit.rollouts.episode import Episode
from act_kit.sim.tasks import STATE_DIM, TASKS

HZ = 10
"""Control frequency of the tasks of diffusion policy; the files do not contain it."""

_ENDS = "meta/episode_ends"


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path, task: str, keys: Keys) -> Content:
    """Open the replay buffer at ``path``; the data is read later, one episode at a time.

    Args:
        path: Folder or zip.
        task: Task name for data without one.
        keys: Arrays in ``data`` to use as states and actions.

    Raises:
        DatasetError: The file is damaged, is not a replay buffer, or uses an unsupported feature of zarr.
    """
    try:
        files = open_files(path, _ENDS)
        ends = _read_ends(files)
        sidecar = files.get(SIDECAR, 100_000_000)
        known = from_json(path, sidecar) if sidecar is not None else None
        names = [name.removeprefix("data/") for name in files.arrays() if name != _ENDS]
        arrays = {name: ZarrArray(files, f"data/{name}") for name in names if f"data/{name}" in files.arrays()}
        fields = known.fields if known else ("state", "action")
        sources = {name: name for name in fields} | ({} if known else _choose_keys(path, arrays, keys, task))
        step_arrays = {name: arrays[source] for name, source in sources.items() if source in arrays}
        if len(step_arrays) < len(fields):
            missing = next(source for name, source in sources.items() if name not in step_arrays)
            raise DatasetError(
                f"{path} lacks data/{missing}; it has {some(list(arrays)) or 'no arrays'}. "
                "Fix: choose the arrays with --state KEY and --action KEY."
            )
        images = {
            name: array
            for name, array in arrays.items()
            if name not in sources.values() and (_is_image(array) or _is_channels_first(array))
        }
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{path} is damaged: {one_line(error)}.") from error
    lengths = np.diff(ends, prepend=0)
    read_arrays = step_arrays | {IMAGES + camera: array for camera, array in images.items()}

    def layout(num_steps: int) -> Layout:
        shapes = {name: array.shape[1:] for name, array in read_arrays.items()}
        for camera, array in images.items():
            if _is_channels_first(array):
                shapes[IMAGES + camera] = (*array.shape[2:], 3)
        return {name: ((num_steps, *shape), read_arrays[name].dtype) for name, shape in shapes.items()}

    for name, array in read_arrays.items():
        if len(array.shape) == 0 or array.shape[0] < ends[-1]:
            raise DatasetError(f"{path}: {name} has shape {array.shape}, but the episodes end at step {ends[-1]}.")
    check_layout(str(path), layout(int(lengths.max())), layout(int(lengths.max())))
    notes = _missing_chunk_notes(read_arrays, int(ends[-1]), is_export=known is not None)
    notes += _trailing_step_notes(read_arrays, int(ends[-1]))
    others = {name: array for name, array in arrays.items() if array not in read_arrays.values()}
    notes += _ignored_notes(others, [name for name in names if name not in arrays], files)
    if known is None:
        known = foreign(task, len(ends), list(images), layout(1), int(lengths.max()), HZ)
        notes += _assumption_notes(sources, step_arrays, others)
        notes += [
            f"the axes of {camera}, {array.shape[1:]}, were reordered to height, width, channels"
            for camera, array in images.items()
            if _is_channels_first(array)
        ]
    check_known(path, known, layout(1), len(ends))

    def recordings() -> Iterator[Episode]:
        for index, episode in enumerate(known.episodes):
            where, end = f"{path}, episode {index}", int(ends[index])
            begin = end - int(lengths[index])
            try:
                steps: dict[str, Any] = {}
                for name, array in step_arrays.items():
                    steps[name] = check_steps(where, name, array.rows(begin, end))
                frames = {camera: _frames(where, camera, array, begin, end) for camera, array in images.items()}
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(f"{where} is damaged: {one_line(error)}.") from error
            yield replace(episode, **steps, images=frames)

    return Content(
        info=known.info,
        num_episodes=len(ends),
        recordings=recordings(),
        attempts=known.attempts,
        cameras=known.cameras,
        fingerprint=known.fingerprint,
        notes=notes,
    )


def _choose_keys(path: Path, arrays: Mapping[str, ZarrArray], keys: Keys, task: str) -> dict[str, str]:
    """Return the arrays to use as states and actions: those in ``keys``; for Meta-World its full state, if any."""
    chosen = {"state": keys.state or "state", "action": keys.action or "action"}
    full_states = [name for name, array in arrays.items() if array.shape[1:] == (STATE_DIM,)]
    if not keys.state and task in TASKS and chosen["state"] not in full_states and len(full_states) == 1:
        chosen["state"] = full_states[0]
    if chosen["state"] == chosen["action"]:
        raise DatasetError(f"{path}: --state and --action both name {chosen['state']}. Fix: name two different arrays.")
    return chosen


def _is_image(array: ZarrArray) -> bool:
    return len(array.shape) == 4 and array.shape[3] == 3


def _is_channels_first(array: ZarrArray) -> bool:
    """Return True for frames with channels first; frames below 16 px are ambiguous and not counted as frames."""
    return len(array.shape) == 4 and array.shape[1] == 3 and min(array.shape[2:]) >= 16


def _frames(where: str, camera: str, array: ZarrArray, begin: int, end: int) -> np.ndarray:
    frames = check_frames(where, camera, array.rows(begin, end))
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1)) if _is_channels_first(array) else frames


# -- notes -------------------------------------------------------------------------------------------------------------


def _missing_chunk_notes(arrays: Mapping[str, ZarrArray], num_steps: int, *, is_export: bool) -> list[str]:
    """Return notes on chunks that are not stored; zarr omits chunks that contain only the fill value.

    Raises:
        DatasetError: Missing chunks mean damage: act_kit wrote the file and writes every chunk, no fill value is
            declared, or no chunk is stored at all.
    """
    counts = {name: array.count_chunks(num_steps) for name, array in arrays.items()}
    is_empty = not any(num_stored for num_stored, _ in counts.values())
    notes = []
    for name, (num_stored, num) in counts.items():
        fill = arrays[name].fill
        if num_stored < num and (is_export or is_empty or fill is None):
            raise DatasetError(
                f"{arrays[name].where} lacks chunk files: {num_stored} of {num} are stored. Fix: copy it again."
            )
        if num_stored < num:
            notes.append(
                f"{num - num_stored} of {num} chunks of {name} are not stored: they are read as {fill:g}, the fill "
                "value (if the copy is incomplete, these values are wrong)"
            )
    return notes


def _trailing_step_notes(arrays: Mapping[str, ZarrArray], num_steps: int) -> list[str]:
    trailing = {name: array.shape[0] - num_steps for name, array in arrays.items() if array.shape[0] > num_steps}
    if not trailing:
        return []
    if len(set(trailing.values())) == 1 and len(trailing) == len(arrays):
        return [f"{next(iter(trailing.values()))} steps after the last episode's end, step {num_steps}, are ignored"]
    counts = some([f"{num} of {name}" for name, num in trailing.items()])
    return [f"steps after the last episode's end, step {num_steps}, are ignored: {counts}"]


def _ignored_notes(arrays: Mapping[str, ZarrArray], elsewhere: Sequence[str], files: ZarrFiles) -> list[str]:
    """Return notes on arrays that are not read and why, on attributes, and on hidden files."""
    notes = []
    images = {name: array for name, array in arrays.items() if len(array.shape) == 4}
    plain = [*(name for name in arrays if name not in images), *elsewhere]
    if plain:
        notes.append(f"ignored: {some(plain)} ({len(plain)} arrays: neither states, actions nor images)")
    notes += [
        f"ignored: {name}, whose shape {array.shape} is not that of images: 3 channels, first or last, and sides of 16 "
        "to 1024 px"
        for name, array in images.items()
    ]
    attributes = files.attributes()
    if attributes:
        notes.append(f"ignored: {len(attributes)} attributes ({some(attributes)})")
    if files.num_hidden:
        notes.append(f"{files.num_hidden} hidden files are ignored")
    return notes


def _assumption_notes(
    sources: Mapping[str, str], step_arrays: Mapping[str, ZarrArray], others: Mapping[str, ZarrArray]
) -> Iterator[str]:
    """Yield notes on assumptions about data that act_kit did not write."""
    yield f"the files contain no control frequency: {HZ} Hz is assumed, that of diffusion policy's tasks"
    state, shape = sources["state"], step_arrays["state"].shape[1:]
    full_states = [name for name, array in others.items() if array.shape[1:] == (STATE_DIM,)]
    if state != "state":
        rest = f" (data/state, of shape {others['state'].shape[1:]}: --state state)" if "state" in others else ""
        yield f"states are read from data/{state}, of shape {shape}{rest}"
    elif full_states:
        other = full_states[0]
        yield f"states are read from data/state, of shape {shape} (data/{other}, of {STATE_DIM}: --state {other})"
    if sources["action"] != "action":
        yield f"actions are read from data/{sources['action']}"
    if step_arrays["action"].dtype == np.float64:
        yield "actions are rounded to float32"


def _read_ends(files: ZarrFiles) -> np.ndarray:
    array = ZarrArray(files, _ENDS)
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] * 8 > EPISODE_BYTES:
        raise DatasetError(f"{array.where} is {array.dtype} of shape {array.shape}; one axis of integers was expected.")
    num_stored, num = array.count_chunks(array.shape[0])
    if num_stored < num:
        raise DatasetError(f"{array.where} lacks chunk files: {num_stored} of {num} are stored. Fix: copy it again.")
    ends = array.rows(0, array.shape[0]).astype(np.int64)
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise DatasetError(f"{array.where} must increase from episode to episode, with at least one episode.")
    return ends


# -- writing -----------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes to a new folder ``path``; return no notes, since the format can store everything."""
    group = zarr.open_group(path, mode="w-", zarr_format=2)
    arrays: dict[str, Any] = {}
    ends = [0]
    with zarr.config.set({"array.write_empty_chunks": True}):  # then a missing chunk always means damage
        for recording in content.recordings:
            for name, values in {**recording.steps, **recording.images}.items():
                if name not in arrays:
                    chunk_rows = max(1, 2_000_000 // values[0].nbytes) if values.ndim == 4 else 1024
                    arrays[name] = group.create_array(
                        f"data/{name}",
                        shape=(0, *values.shape[1:]),
                        dtype=values.dtype,
                        chunks=(chunk_rows, *values.shape[1:]),
                        compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
                    )
                arrays[name].resize((ends[-1] + len(values), *values.shape[1:]))
                arrays[name][ends[-1] :] = values
            ends.append(ends[-1] + len(recording))
        group.create_array(_ENDS, data=np.array(ends[1:], np.int64), compressors=None)
    return []
