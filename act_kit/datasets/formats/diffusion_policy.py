"""The replay buffers of diffusion policy (Chi et al. 2023, arXiv:2303.04137), in and out.

The layout is that of ``ReplayBuffer`` in github.com/real-stanford/diffusion_policy: a zarr group with the steps of all
episodes, one after the other, in ``data/state``, ``data/action``, ``data/<camera>``, and with ``meta/episode_ends``. It
is distributed as a folder or as a zip of one, in zarr's format 2 or 3.

What is written is written with zarr, in format 2. What is read is anybody's file, and read here (``zarr_files.py``).
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
from act_kit.rollouts.episode import Recording
from act_kit.sim.tasks import STATE_DIM, TASKS

HZ = 10
"""Of their tasks; the files do not say."""

_ENDS = "meta/episode_ends"


# -- in ----------------------------------------------------------------------------------------------------------------


def read(path: Path, task: str, keys: Keys) -> Content:
    """Open the replay buffer at ``path``, a folder or a zip; its episodes are read one at a time, later.

    Args:
        path: Where it is.
        task: What the task is called where the data do not say.
        keys: The arrays in ``data`` to take for states and actions.

    Raises:
        DatasetError: It is damaged, is something else, or uses what their own code does not.
    """
    try:
        files = open_files(path, _ENDS)
        ends = _read_ends(files)
        sidecar = files.get(SIDECAR, 100_000_000)
        known = from_json(path, sidecar) if sidecar is not None else None
        names = [name.removeprefix("data/") for name in files.arrays() if name != _ENDS]
        arrays = {name: ZarrArray(files, f"data/{name}") for name in names if f"data/{name}" in files.arrays()}
        fields = known.fields if known else ("state", "action")
        sources = {name: name for name in fields} | ({} if known else _choose(path, arrays, keys, task))
        taken = {name: arrays[source] for name, source in sources.items() if source in arrays}
        if len(taken) < len(fields):
            missing = next(source for name, source in sources.items() if name not in taken)
            raise DatasetError(
                f"{path} lacks data/{missing}; it has {some(list(arrays)) or 'no arrays'}. "
                "Choose with --state KEY and --action KEY."
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
    read_arrays = taken | {IMAGES + camera: array for camera, array in images.items()}

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
    notes = _unwritten(read_arrays, int(ends[-1]), is_ours=known is not None)
    notes += _beyond(read_arrays, int(ends[-1]))
    others = {name: array for name, array in arrays.items() if array not in read_arrays.values()}
    notes += _left(others, [name for name in names if name not in arrays], files)
    if known is None:
        known = foreign(task, len(ends), list(images), layout(1), int(lengths.max()), HZ)
        notes += _assumed(sources, taken, others)
        notes += [
            f"the axes of {camera}, {array.shape[1:]}, were reordered to height, width, channels"
            for camera, array in images.items()
            if _is_channels_first(array)
        ]
    check_known(path, known, layout(1), len(ends))

    def recordings() -> Iterator[Recording]:
        for index, episode in enumerate(known.episodes):
            where, end = f"{path}, episode {index}", int(ends[index])
            begin = end - int(lengths[index])
            try:
                steps = {name: check_steps(where, name, a.rows(begin, end)) for name, a in taken.items()}
                frames = {camera: _frames(where, camera, a, begin, end) for camera, a in images.items()}
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(f"{where} is damaged: {one_line(error)}.") from error
            yield replace(episode, steps=steps, images=frames)

    return Content(
        info=known.info,
        num_episodes=len(ends),
        recordings=recordings(),
        attempts=known.attempts,
        cameras=known.cameras,
        fingerprint=known.fingerprint,
        notes=notes,
    )


def _choose(path: Path, arrays: Mapping[str, ZarrArray], keys: Keys, task: str) -> dict[str, str]:
    """Return which arrays are states and actions: those asked for; of Meta-World, its whole state if it is there."""
    chosen = {"state": keys.state or "state", "action": keys.action or "action"}
    wide = [name for name, array in arrays.items() if array.shape[1:] == (STATE_DIM,)]
    if not keys.state and task in TASKS and chosen["state"] not in wide and len(wide) == 1:
        chosen["state"] = wide[0]
    if chosen["state"] == chosen["action"]:
        raise DatasetError(f"{path}: --state and --action both name {chosen['state']}. Name two arrays.")
    return chosen


def _is_image(array: ZarrArray) -> bool:
    return len(array.shape) == 4 and array.shape[3] == 3


def _is_channels_first(array: ZarrArray) -> bool:
    """Tell frames whose channels come first; narrow ones could be either, and are no frames."""
    return len(array.shape) == 4 and array.shape[1] == 3 and min(array.shape[2:]) >= 16


def _frames(where: str, camera: str, array: ZarrArray, begin: int, end: int) -> np.ndarray:
    frames = check_frames(where, camera, array.rows(begin, end))
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1)) if _is_channels_first(array) else frames


# -- what is not taken over --------------------------------------------------------------------------------------------


def _unwritten(arrays: Mapping[str, ZarrArray], num_steps: int, *, is_ours: bool) -> list[str]:
    """Say which chunks are not stored: zarr leaves out those that hold nothing but the fill value.

    Raises:
        DatasetError: They are damage: act_kit writes every chunk, no fill value is declared, or none at all is stored.
    """
    counts = {name: array.count_chunks(num_steps) for name, array in arrays.items()}
    is_empty = not any(num_stored for num_stored, _ in counts.values())
    notes = []
    for name, (num_stored, num) in counts.items():
        fill = arrays[name].fill
        if num_stored < num and (is_ours or is_empty or fill is None):
            raise DatasetError(
                f"{arrays[name].where} lacks chunk files: {num_stored} of {num} are stored. Copy it again."
            )
        if num_stored < num:
            notes.append(
                f"{num - num_stored} of {num} chunks of {name} are not stored: they were read as {fill:g}, the fill "
                "value (if the copy is not complete, these numbers are wrong)"
            )
    return notes


def _beyond(arrays: Mapping[str, ZarrArray], num_steps: int) -> list[str]:
    beyond = {name: array.shape[0] - num_steps for name, array in arrays.items() if array.shape[0] > num_steps}
    if not beyond:
        return []
    if len(set(beyond.values())) == 1 and len(beyond) == len(arrays):
        return [f"{next(iter(beyond.values()))} steps after the last episode's end, step {num_steps}, are left behind"]
    counts = some([f"{num} of {name}" for name, num in beyond.items()])
    return [f"steps after the last episode's end, step {num_steps}, are left behind: {counts}"]


def _left(arrays: Mapping[str, ZarrArray], elsewhere: Sequence[str], files: ZarrFiles) -> list[str]:
    """Say which arrays are not read and why, which attributes, and how many hidden files."""
    notes = []
    images = {name: array for name, array in arrays.items() if len(array.shape) == 4}
    plain = [*(name for name in arrays if name not in images), *elsewhere]
    if plain:
        notes.append(f"left behind: {some(plain)} ({len(plain)} arrays: neither states, actions nor images)")
    notes += [
        f"left behind: {name}, whose shape {array.shape} is that of no image: 3 channels, first or last, and sides of "
        "16 to 1024 px"
        for name, array in images.items()
    ]
    attributes = files.attributes()
    if attributes:
        notes.append(f"left behind: {len(attributes)} attributes ({some(attributes)})")
    if files.num_hidden:
        notes.append(f"{files.num_hidden} hidden files were skipped")
    return notes


def _assumed(
    sources: Mapping[str, str], taken: Mapping[str, ZarrArray], others: Mapping[str, ZarrArray]
) -> Iterator[str]:
    """Say what the files do not."""
    yield f"the files name no rate: {HZ} Hz is assumed, their tasks'"
    state, width = sources["state"], taken["state"].shape[1:]
    wide = [name for name, array in others.items() if array.shape[1:] == (STATE_DIM,)]
    if state != "state":
        rest = f" (data/state, of shape {others['state'].shape[1:]}: --state state)" if "state" in others else ""
        yield f"states are those of data/{state}, of shape {width}{rest}"
    elif wide:
        yield f"states are those of data/state, of shape {width} (data/{wide[0]}, of {STATE_DIM}: --state {wide[0]})"
    if sources["action"] != "action":
        yield f"actions are those of data/{sources['action']}"
    if taken["action"].dtype == np.float64:
        yield "actions are rounded to float32"


def _read_ends(files: ZarrFiles) -> np.ndarray:
    array = ZarrArray(files, _ENDS)
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] * 8 > EPISODE_BYTES:
        raise DatasetError(f"{array.where} is {array.dtype} of shape {array.shape}; one axis of integers is expected.")
    num_stored, num = array.count_chunks(array.shape[0])
    if num_stored < num:
        raise DatasetError(f"{array.where} lacks chunk files: {num_stored} of {num} are stored. Copy it again.")
    ends = array.rows(0, array.shape[0]).astype(np.int64)
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise DatasetError(f"{array.where} must grow from episode to episode, and there must be one.")
    return ends


# -- out ---------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes into a new folder ``path``; return what the format cannot hold: nothing."""
    group = zarr.open_group(path, mode="w-", zarr_format=2)
    arrays: dict[str, Any] = {}
    ends = [0]
    with zarr.config.set({"array.write_empty_chunks": True}):  # a missing chunk is then always damage
        for recording in content.recordings:
            for name, values in {**recording.steps, **recording.images}.items():
                if name not in arrays:
                    arrays[name] = group.create_array(
                        f"data/{name}", shape=(0, *values.shape[1:]), dtype=values.dtype,
                        chunks=(max(1, 2_000_000 // values[0].nbytes) if values.ndim == 4 else 1024, *values.shape[1:]),
                        compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
                    )  # fmt: skip
                arrays[name].resize((ends[-1] + len(values), *values.shape[1:]))
                arrays[name][ends[-1] :] = values
            ends.append(ends[-1] + len(recording))
        group.create_array(_ENDS, data=np.array(ends[1:], np.int64), compressors=None)
    return []
