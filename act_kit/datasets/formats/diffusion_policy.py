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

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.formats import content as checks
from act_kit.datasets.formats.content import IMAGES, SIDECAR, Content, Keys, Layout, some
from act_kit.datasets.formats.zarr_files import ZarrArray, ZarrFiles
from act_kit.errors import DatasetError
from act_kit.sim.tasks import STATE_DIM, TASKS

HZ = 10
"""Control frequency of the tasks of diffusion policy; the files do not contain it."""

_ENDS = "meta/episode_ends"

Arrays = Mapping[str, ZarrArray]


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
    with as_dataset_error(f"{path} is damaged"):
        files = ZarrFiles(path, _ENDS)
        ends = _read_ends(files)
        known = checks.from_json(path, files.get(SIDECAR, 100_000_000))
        names = files.array_names()
        arrays = {name.removeprefix("data/"): ZarrArray(files, name) for name in names if name.startswith("data/")}
        # The array of each field; for data of act_kit, all fields have the names of their arrays.
        sources = (
            dict(zip(known.fields, known.fields, strict=True)) if known else _choose_keys(path, arrays, keys, task)
        )
        used = _select_arrays(path, arrays, sources)
        layout = _layout(path, used, ends)
        notes = _missing_chunk_notes(used, int(ends[-1]), is_export=known is not None)
        notes += _trailing_step_notes(used, int(ends[-1]))
        others = {name: array for name, array in arrays.items() if array not in used.values()}
        elsewhere = [name for name in names if name != _ENDS and not name.startswith("data/")]
        notes += _ignored_notes(others, elsewhere, files)
    content = known or checks.foreign(task, len(ends), layout, HZ, "diffusion policy's tasks")
    if known is None:
        notes += [*content.notes, *_assumption_notes(sources, used, others)]
    checks.check_content(path, content, layout, len(ends))

    def read_array(index: int, name: str) -> np.ndarray:
        rows = used[name].rows(int(ends[index - 1]) if index else 0, int(ends[index]))
        return np.ascontiguousarray(rows.transpose(0, 2, 3, 1)) if _is_channels_first(used[name]) else rows

    recordings = checks.read_episodes(content, layout, lambda index: f"{path}, episode {index}", read_array)
    content = replace(content, recordings=recordings, notes=notes)
    return content if known else checks.clip_actions(content, (read_array(i, "action") for i in range(len(ends))))


def _choose_keys(path: Path, arrays: Arrays, keys: Keys, task: str) -> dict[str, str]:
    """Return the arrays to use as states and actions: those in ``keys``; for Meta-World its full state, if any."""
    state, action = keys.state or "state", keys.action or "action"
    full_states = _full_states(arrays)
    if not keys.state and task in TASKS and "state" not in full_states and len(full_states) == 1:
        state = full_states[0]
    if state == action:
        raise DatasetError(f"{path}: --state and --action both name {state}. Fix: name two different arrays.")
    return {"state": state, "action": action}


def _full_states(arrays: Arrays) -> list[str]:
    return [name for name, array in arrays.items() if array.shape[1:] == (STATE_DIM,)]


def _select_arrays(path: Path, arrays: Arrays, sources: Mapping[str, str]) -> dict[str, ZarrArray]:
    """Return the arrays of the fields and the cameras."""
    selected = {}
    for name, source in sources.items():
        if source not in arrays:
            has = some(arrays) or "no arrays"
            raise DatasetError(f"{path} lacks data/{source}; it has {has}. Fix: --state KEY and --action KEY.")
        selected[name] = arrays[source]
    for name, array in arrays.items():
        is_channels_last = len(array.shape) == 4 and array.shape[3] == 3
        if name not in sources.values() and (is_channels_last or _is_channels_first(array)):
            selected[IMAGES + name] = array
    return selected


def _is_channels_first(array: ZarrArray) -> bool:
    """Return True for frames with channels first; frames below 16 px are ambiguous and not counted as frames."""
    return len(array.shape) == 4 and array.shape[1] == 3 and min(array.shape[2:]) >= 16


def _layout(path: Path, arrays: Arrays, ends: np.ndarray) -> Layout:
    """Return the checked layout of the longest episode."""
    num_steps = int(np.diff(ends, prepend=0).max())
    layout = {}
    for name, array in arrays.items():
        if not array.shape or array.shape[0] < ends[-1]:
            raise DatasetError(f"{path}: {name} has shape {array.shape}, but the episodes end at step {ends[-1]}.")
        shape = (*array.shape[2:], 3) if _is_channels_first(array) else array.shape[1:]
        layout[name] = ((num_steps, *shape), array.dtype)
    checks.check_layout(str(path), layout, layout)
    return layout


def _read_ends(files: ZarrFiles) -> np.ndarray:
    array = ZarrArray(files, _ENDS)
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] * 8 > checks.EPISODE_BYTES:
        raise DatasetError(f"{array.where} is {array.dtype} of shape {array.shape}; one axis of integers was expected.")
    _missing_chunk_notes({_ENDS: array}, array.shape[0], is_export=True)
    ends = array.rows(0, array.shape[0]).astype(np.int64)
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise DatasetError(f"{array.where} must increase from episode to episode, with at least one episode.")
    return ends


# -- notes -------------------------------------------------------------------------------------------------------------


def _missing_chunk_notes(arrays: Arrays, num_steps: int, *, is_export: bool) -> list[str]:
    """Return notes on chunks that are not stored; zarr omits chunks that contain only the fill value.

    Raises:
        DatasetError: Missing chunks mean damage: act_kit wrote the file and writes every chunk, no fill value is
            declared, or no chunk is stored at all.
    """
    counts: dict[str, tuple[int, int]] = {}
    has_any = False
    for name, array in arrays.items():
        counts[name] = array.count_chunks(num_steps)
        has_any = has_any or counts[name][0] > 0
    notes = []
    for name, (num_stored, num) in counts.items():
        array = arrays[name]
        if num_stored == num:
            continue
        if is_export or not has_any or array.fill is None:
            raise DatasetError(f"{array.where} lacks chunk files: {num_stored} of {num} exist. Fix: copy it again.")
        notes.append(
            f"{num - num_stored} of {num} chunks of {name} are not stored: they are read as {array.fill:g}, the fill "
            "value (if the copy is incomplete, these values are wrong)"
        )
    return notes


def _trailing_step_notes(arrays: Arrays, num_steps: int) -> list[str]:
    counts = dict.fromkeys(arrays, 0)
    trailing: list[str] = []
    for name, array in arrays.items():
        counts[name] = array.shape[0] - num_steps
        if counts[name]:
            trailing.append(f"{counts[name]} of {name}")
    if not trailing:
        return []
    where = f"after the last episode's end, step {num_steps}, are ignored"
    if len(set(counts.values())) == 1:
        return [f"{max(counts.values())} steps {where}"]
    return [f"steps {where}: {some(trailing)}"]


def _ignored_notes(arrays: Arrays, elsewhere: Sequence[str], files: ZarrFiles) -> list[str]:
    """Return notes on arrays that are not read and why, on attributes, and on hidden files."""
    plain, notes = [], []
    for name, array in arrays.items():
        if len(array.shape) == 4:
            rule = "3 channels, first or last, and sides of 16 to 1024 px"
            notes.append(f"ignored: {name}, whose shape {array.shape} is not that of images: {rule}")
        else:
            plain.append(name)
    plain += elsewhere
    if plain:
        notes.append(f"ignored: {some(plain)} ({len(plain)} arrays: neither states, actions nor images)")
    attributes = files.attribute_names()
    if attributes:
        notes.append(f"ignored: {len(attributes)} attributes ({some(attributes)})")
    if files.num_hidden:
        notes.append(f"{files.num_hidden} hidden files are ignored")
    return notes


def _assumption_notes(sources: Mapping[str, str], used: Arrays, others: Arrays) -> Iterator[str]:
    """Yield notes on assumptions about data that act_kit did not write."""
    state, shape = sources["state"], used["state"].shape[1:]
    if state != "state":
        rest = f" (data/state, of shape {others['state'].shape[1:]}: --state state)" if "state" in others else ""
        yield f"states are read from data/{state}, of shape {shape}{rest}"
    else:
        for other in _full_states(others)[:1]:
            yield f"states are read from data/state, of shape {shape} (data/{other}, of {STATE_DIM}: --state {other})"
    if sources["action"] != "action":
        yield f"actions are read from data/{sources['action']}"
    if used["action"].dtype == np.float64:
        yield "actions are rounded to float32"
    for name, array in used.items():
        if name.startswith(IMAGES) and _is_channels_first(array):
            camera = name.removeprefix(IMAGES)
            yield f"the axes of {camera}, {array.shape[1:]}, were reordered to height, width, channels"


# -- writing -----------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> list[str]:
    """Write the episodes to a new folder ``path``; return no notes, since the format can store everything."""
    group = zarr.open_group(path, mode="w-", zarr_format=2)
    compressor = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    arrays: dict[str, Any] = {}
    ends = [0]
    with zarr.config.set({"array.write_empty_chunks": True}):  # then a missing chunk always means damage
        for recording in content.recordings:
            for name, values in {**recording.steps, **recording.images}.items():
                shape = values.shape[1:]
                if name not in arrays:
                    chunks = (max(1, 2_000_000 // values[0].nbytes) if values.ndim == 4 else 1024, *shape)
                    arrays[name] = group.create_array(
                        f"data/{name}", shape=(0, *shape), dtype=values.dtype, chunks=chunks, compressors=compressor
                    )
                arrays[name].resize((ends[-1] + len(values), *shape))
                arrays[name][ends[-1] :] = values
            ends.append(ends[-1] + len(recording))
        group.create_array(_ENDS, data=np.array(ends[1:], np.int64), compressors=None)
    return []
