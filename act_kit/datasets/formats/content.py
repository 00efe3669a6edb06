"""Content of a dataset independent of its format, and checks of files from unknown sources.

Exported datasets contain ``act_kit.json``, which other readers ignore: it restores initial states, sources and attempts
when the data is imported again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.images import RenderedFrames, iter_with_images, rendered_frames
from act_kit.datasets.schema import DatasetInfo
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import quoted
from act_kit.rollouts.episode import STEP_FIELDS, AttemptRecord, Episode, dtype_of
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import RenderSettings
from act_kit.sim.tasks import ACTION_DIM, CONTROL_HZ, HORIZON, TASKS
from act_kit.versions import git_commit, versions

SIDECAR = "act_kit.json"
FIX_SIDECAR = f"copy the data again, or delete {SIDECAR} to import the data without its metadata."
EPISODE_BYTES = 6_000_000_000
"""Maximum size that an episode may declare: 1,500 steps of four cameras at 480x640 are 5.5 GB. Files of a few kilobytes
can declare terabytes, so this is checked before any allocation."""

_NAME_BYTES = 120
"""Maximum length of the name of a camera or task; files named after it may have 255 bytes, including a suffix."""

_NAME_RULE = f": at most {_NAME_BYTES} bytes of letters, digits, '_', '-' and '.' were expected"

IMAGES = "images/"
"""Prefix of the names of cameras in a :data:`Layout`."""

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and dtype of every array of an episode, known before any is read."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Names of the arrays to use as states and actions; "" for the defaults of the format."""

    state: str = ""
    action: str = ""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A dataset, to be written in another format.

    Attributes:
        info: Metadata of the dataset.
        fields: Names of the recorded ``STEP_FIELDS``.
        episodes: Source, initial state and attempt of each episode, without steps.
        attempts: Attempts of the collection; empty if unknown.
        cameras: Cameras of the images.
        fingerprint: Fingerprint of the dataset, or of the dataset from which it was exported; None for other data.
        recordings: Iterator over the episodes with their steps and images; it can be used once.
        num_clipped, num_clipped_episodes: Number of actions that were outside [-1, 1] and are clipped, and of the
            episodes that have any; None if none was checked.
        first_states: First observations of Meta-World, float64 (N, 39), from which initial states may follow; None if
            there are none, or if the initial states are known.
        notes: Messages to the user: data that could not be converted, and assumptions.
        warnings: Messages to the user: what makes the data unfit for a use.
    """

    info: DatasetInfo
    fields: Sequence[str]
    episodes: Sequence[Episode]
    cameras: Mapping[str, RenderedFrames]
    attempts: Sequence[AttemptRecord] = ()
    fingerprint: str | None = None
    recordings: Iterable[Episode] = ()
    num_clipped: int | None = None
    num_clipped_episodes: int = 0
    first_states: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def of_store(store: EpisodeStore) -> Content:
    """Return the content of a dataset of act_kit.

    Raises:
        DatasetError: The dataset is unfinished, or images are missing.
    """
    if store.fingerprint is None:
        command = f"{store.info.command} --out {quoted(store.path)} --resume"
        raise DatasetError(f"{store.path} is not finished. Resume with: {command}")
    store.check_content()
    return Content(
        info=store.info,
        fields=store.fields,
        episodes=list(store.iter_episodes(fields=())),
        attempts=store.attempts(),
        cameras=rendered_frames(store),
        fingerprint=store.fingerprint,
        recordings=iter_with_images(store),
    )


# -- act_kit.json ------------------------------------------------------------------------------------------------------


def to_json(content: Content) -> dict[str, Any]:
    """Return the content of ``act_kit.json``; floats are bit-exact in JSON."""
    attempts: list[dict[str, Any]] = []
    episodes: list[dict[str, Any]] = []
    for attempt in content.attempts:
        init_state = attempt.init_state.rand_vec
        attempts.append({"init_state": init_state, "num_steps": attempt.num_steps, "kept": attempt.kept})
    for each in content.episodes:
        rand_vec = each.init_state and each.init_state.rand_vec
        episodes.append({"init_state": rand_vec, "source": each.source, "attempt": each.attempt})
    return {
        "format": "act_kit.export",
        "version": 1,
        "fingerprint": content.fingerprint,
        "info": asdict(content.info),
        "fields": list(content.fields),
        "cameras": {name: asdict(rendered) for name, rendered in content.cameras.items()},
        "attempts": attempts,
        "episodes": episodes,
    }


def from_json(folder: Path, text: bytes | None) -> Content | None:
    """Parse ``act_kit.json``, without recordings; None if the file does not exist.

    Raises:
        DatasetError: The file is damaged, for example edited by hand.
    """
    if text is None:
        return None
    with as_dataset_error(f"{folder / SIDECAR} is damaged", FIX_SIDECAR):
        content = json.loads(text)
        info = DatasetInfo(**content["info"])
        if (content["format"], content["version"]) != ("act_kit.export", 1) or not _is_name(info.task):
            raise ValueError(f"it has another version, or an invalid task {some([info.task])!r}")

        dims = set[int]()

        def init_state_of(entry: Mapping[str, Any]) -> InitialState:
            rand_vec = np.array(entry["init_state"], dtype=np.float64).reshape(-1)
            dims.add(len(rand_vec))
            return InitialState.of(info.task, rand_vec)

        episodes: list[Episode] = []
        for entry in content["episodes"]:
            init_state: Any = None if entry["init_state"] is None else init_state_of(entry)
            source, attempt = str(entry["source"]), int(entry["attempt"])
            episodes.append(Episode(source=source, init_state=init_state, attempt=attempt))
        attempts: list[AttemptRecord] = []
        for entry in content["attempts"]:
            num_steps, kept = int(entry["num_steps"]), bool(entry["kept"])
            attempts.append(AttemptRecord(init_state=init_state_of(entry), num_steps=num_steps, kept=kept))
        cameras: dict[str, RenderedFrames] = {}
        for name, entry in content["cameras"].items():
            settings = RenderSettings.from_dict(entry["settings"])
            cameras[str(name)] = RenderedFrames(settings=settings, renderer=str(entry["renderer"]))
        fields = tuple(name for name in STEP_FIELDS if name in content["fields"])
        if fields[:2] != ("state", "action") or len(dims) > 1:
            raise ValueError("states or actions are missing, or initial states differ in length")
        return Content(
            info=info,
            fields=fields,
            episodes=episodes,
            attempts=attempts,
            cameras=cameras,
            fingerprint=None if content["fingerprint"] is None else str(content["fingerprint"]),
        )


def foreign(task: str, num_episodes: int, layout: Layout, hz: int, project: str = "") -> Content:
    """Return the content of data that act_kit did not write, derived from the arrays of its longest episode.

    ``project`` is the one whose control frequency is assumed, if the files contain none; for a task of Meta-World, that
    of Meta-World is.

    Raises:
        DatasetError: ``task`` is not a valid folder name.
    """
    if not _is_name(task):
        raise DatasetError(f"{some([task])!r} is not a valid task name{_NAME_RULE}. Fix: --task NAME")
    num_steps = layout["action"][0][0]
    if project and task in TASKS:
        hz, project = CONTROL_HZ, "Meta-World"
    info = DatasetInfo(
        task=task,
        num_wanted=num_episodes,
        init_distribution="unknown",
        demonstrator="imported",
        versions=versions(),
        git_commit=git_commit(),
        horizon=max(HORIZON, num_steps) if task in TASKS else num_steps,
        control_hz=hz,
    )
    cameras: dict[str, RenderedFrames] = {}
    for camera, (height, width) in _frame_sizes(layout).items():
        settings = RenderSettings(height_px=height, width_px=width)
        cameras[camera] = RenderedFrames(settings=settings, renderer="imported")
    return Content(
        info=info,
        fields=("state", "action"),
        episodes=[Episode(source="imported")] * num_episodes,
        cameras=cameras,
        notes=[f"the files contain no control frequency: {hz} Hz is assumed, that of {project}"] if project else [],
    )


# -- checks ------------------------------------------------------------------------------------------------------------


def _is_name(text: str) -> bool:
    """Return True if a name from an untrusted file is safe as the name of a file or folder."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None and len(text.encode()) <= _NAME_BYTES


def _frame_sizes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the height and the width of the frames of each camera."""
    sizes: dict[str, tuple[int, ...]] = {}
    for name, (shape, _) in layout.items():
        if name.startswith(IMAGES):
            sizes[name.removeprefix(IMAGES)] = shape[1:3]
    return sizes


def some(names: Iterable[str], most: int = 8) -> str:
    """Join names for a message; beyond ``most``, only their number is given."""
    shown = [name if len(name) <= 80 else name[:79] + "…" for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def check_layout(where: str, layout: Layout, like: Layout) -> None:
    """Check the arrays of an episode before any is read.

    Args:
        where: Name of the file, and of the episode if the file has several.
        layout: Arrays of the episode.
        like: Arrays of the first episode, whose shapes and cameras must be the same.

    Raises:
        DatasetError: The arrays are inconsistent, have a wrong rank or dtype, or declare too large a size.
    """
    num_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
    if num_bytes > EPISODE_BYTES:
        most = f"{EPISODE_BYTES // 10**9} GB at most"
        raise DatasetError(f"{where} declares {num_bytes // 10**9} GB; an episode may have {most}.")
    for name, (shape, dtype) in layout.items():
        is_image = name.startswith(IMAGES)
        rank = 4 if is_image else 1 if name in ("reward", "success", "distance") else 2
        if len(shape) != rank or dtype.kind not in ("fiu" if is_image else "fiub") or 0 in shape:
            raise DatasetError(f"{where}: {name} is {dtype} of shape {shape}; {rank} axes of numbers, none empty, fit.")
        if is_image and (shape[3] != 3 or min(shape[1:3]) < 16 or max(shape[1:3]) > 1024):
            raise DatasetError(f"{where}: {name} has shape {shape}; frames have 3 channels and sides of 16 to 1024 px.")
        camera = name.removeprefix(IMAGES)
        if is_image and (not _is_name(camera) or camera in STEP_FIELDS):
            raise DatasetError(f"{where}: {some([camera])!r} is not a valid camera name{_NAME_RULE}.")
    num_steps = layout["action"][0][0]
    for name, (shape, _) in layout.items():
        if shape[0] != num_steps:
            raise DatasetError(f"{where}: {name} has {shape[0]} steps, the actions have {num_steps}.")
    shapes, expected = _row_shapes(layout), _row_shapes(like)
    if shapes != expected:
        raise DatasetError(f"{where} has {shapes}, the first episode {expected}: all must have the same arrays.")


def _row_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of one step of every array."""
    return {name: shape[1:] for name, (shape, _) in layout.items()}


def check_content(folder: Path, content: Content, layout: Layout, num_episodes: int) -> None:
    """Raise :class:`DatasetError` unless ``act_kit.json`` matches the arrays."""
    sizes = _frame_sizes(layout)
    declared = {name: (each.settings.height_px, each.settings.width_px) for name, each in content.cameras.items()}
    if len(content.episodes) != num_episodes or declared != sizes:
        known, found = f"{len(content.episodes)} episodes with frames {declared}", f"{num_episodes} with {sizes}"
        raise DatasetError(f"{folder / SIDECAR} is for {known}, the data has {found}. Fix: {FIX_SIDECAR}")


def read_episodes(
    content: Content, layout: Layout, name_of: Callable[[int], str], read: Callable[[int, str], np.ndarray]
) -> Iterator[Episode]:
    """Yield the episodes with their arrays, in the dtypes in which they are stored.

    Args:
        content: The episodes without arrays.
        layout: Arrays of an episode.
        name_of: Function that returns the name of an episode in messages.
        read: Function that reads an array of an episode; its values may have another dtype.

    Raises:
        DatasetError: Values are not finite, before or after the conversion; for images, not integers from 0 to 255.
    """
    for index, episode in enumerate(content.episodes):
        steps: dict[str, Any] = {}
        images: dict[str, np.ndarray] = {}
        for name in layout:
            where, camera = name_of(index), name.removeprefix(IMAGES)
            with as_dataset_error(f"{where} is damaged"), np.errstate(over="ignore", invalid="ignore"):
                values = read(index, name)
                stored: np.ndarray = values.astype(np.uint8 if name.startswith(IMAGES) else dtype_of(name), copy=False)
            if name.startswith(IMAGES):
                images[camera] = stored
                if stored is not values and not (stored == values).all():
                    raise DatasetError(f"{where}: the frames of {camera} are not integers from 0 to 255.")
            else:
                steps[name] = stored
                if not np.isfinite(stored).all():
                    raise DatasetError(f"{where}: {name} has values that are not finite (NaN or infinite).")
        yield replace(episode, **steps, images=images)


def clip_actions(content: Content, actions: Iterable[np.ndarray]) -> Content:
    """Return the content with Meta-World's actions clipped to [-1, 1], and a note on how many are.

    Meta-World does the same before it executes them. ``actions`` are those of each episode, (T, A), to be counted.
    """
    if content.info.task not in TASKS:
        return content
    num_steps = 0
    clipped: list[int] = []
    for values in actions:
        if values.shape[1:] != (ACTION_DIM,):
            return content
        num_steps += len(values)
        clipped.append(int((np.abs(values) > 1).any(axis=1).sum()))
    num, num_episodes = sum(clipped), int(np.count_nonzero(clipped))
    note = (
        f"{num} of {num_steps} actions, in {num_episodes} of {len(clipped)} episodes, are outside [-1, 1]: they are "
        "clipped, as Meta-World does before it executes them"
    )
    return replace(
        content,
        recordings=map(_clipped, content.recordings),
        num_clipped=num,
        num_clipped_episodes=num_episodes,
        notes=[*content.notes, note] if num else content.notes,
    )


def _clipped(recording: Episode) -> Episode:
    return replace(recording, action=np.clip(recording.steps["action"], -1, 1))
