"""Content of a dataset independent of its format, and checks of files from unknown sources.

Exported datasets contain ``act_kit.json``, which other readers ignore: it restores initial states, sources and attempts
when the data is imported again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.datasets.schema import DatasetInfo
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import RenderedFrames
from act_kit.errors import ActKitError, DatasetError
from act_kit.files import quoted
from act_kit.rollouts.episode import STEP_FIELDS, Attempt, Recording, dtype_of
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import RenderSettings
from act_kit.versions import git_commit, versions

SIDECAR = "act_kit.json"
EPISODE_BYTES = 6_000_000_000
"""Maximum size that an episode may declare: 1,500 steps of four cameras at 480x640 are 5.5 GB. Files of a few kilobytes
can declare terabytes, so this is checked before any allocation."""

_NAME_BYTES = 120
"""Maximum length of the name of a camera or task; files named after it may have 255 bytes, including a suffix."""

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
    """A dataset to be written in another format.

    Attributes:
        info: Metadata of the dataset.
        num_episodes: Number of episodes.
        recordings: Iterator over the episodes with their images; it can be used once.
        attempts: Attempts of the collection; empty if unknown.
        cameras: Cameras of the images.
        fingerprint: Fingerprint of the dataset, or of the dataset from which it was exported; None for other data.
        notes: Messages to the user: data that could not be converted, and assumptions.
    """

    info: DatasetInfo
    num_episodes: int
    recordings: Iterator[Recording]
    attempts: Sequence[Attempt]
    cameras: Mapping[str, RenderedFrames]
    fingerprint: str | None
    notes: list[str] = field(default_factory=list)


def of_store(store: EpisodeStore) -> Content:
    """Return the content of a dataset of act_kit.

    Raises:
        DatasetError: The dataset is unfinished, or images are missing.
    """
    if store.fingerprint is None:
        command = f"{store.info.command} --out {quoted(store.path)} --resume"
        raise DatasetError(f"{store.path} is not finished. Resume with: {command}")
    store.check_content()
    images = [ImageStore(store, camera) for camera in ImageStore.cameras(store)]
    for image in images:
        next(image.blocks(), None)  # raises if frames are missing

    def recordings() -> Iterator[Recording]:
        for index, recording in enumerate(store.iter_episodes()):
            frames = {image.camera: image.checked_episode(index) for image in images}
            yield replace(recording, images=frames)

    return Content(
        info=store.info,
        num_episodes=store.num_episodes,
        recordings=recordings(),
        attempts=store.attempts(),
        cameras={image.camera: RenderedFrames(settings=image.settings, renderer=image.renderer) for image in images},
        fingerprint=store.fingerprint,
    )


# -- act_kit.json ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Known:
    """Metadata of a dataset in another format, without its arrays.

    Attributes:
        info, attempts, cameras, fingerprint: As in :class:`Content`.
        fields: Names of the recorded ``STEP_FIELDS``.
        episodes: Source, initial state and attempt of each episode.
    """

    info: DatasetInfo
    attempts: Sequence[Attempt]
    cameras: Mapping[str, RenderedFrames]
    fingerprint: str | None
    fields: tuple[str, ...]
    episodes: Sequence[Recording]


def to_json(content: Content, fields: Sequence[str], episodes: Sequence[Recording]) -> dict[str, Any]:
    """Return the content of ``act_kit.json``; floats are bit-exact in JSON."""
    attempts = [
        {"init_state": attempt.init_state.rand_vec, "num_steps": attempt.num_steps, "kept": attempt.kept}
        for attempt in content.attempts
    ]
    return {
        "format": "act_kit.export",
        "version": 1,
        "fingerprint": content.fingerprint,
        "info": asdict(content.info),
        "fields": list(fields),
        "cameras": {name: asdict(rendered) for name, rendered in content.cameras.items()},
        "attempts": attempts,
        "episodes": [
            {"init_state": e.init_state and e.init_state.rand_vec, "source": e.source, "attempt": e.attempt}
            for e in episodes
        ],
    }


def from_json(where: Path, text: bytes) -> Known:
    """Parse ``act_kit.json``.

    Raises:
        DatasetError: The file is damaged, for example edited by hand.
    """
    try:
        content = json.loads(text)
        info = DatasetInfo(**content["info"])
        if (content["format"], content["version"]) != ("act_kit.export", 1):
            raise ValueError("another version")
        kinds: dict[str, Any] = {
            "task": str,
            "num_wanted": int,
            "seed": (int, NoneType),
            "noise": float,
            "control_hz": int,
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(info, name), kind):
                raise ValueError(f"{name} is {getattr(info, name)!r}")
        if not _is_name(info.task):
            raise ValueError(f"task is {some([info.task])!r}")
        if info.control_hz < 1:
            raise ValueError(f"control_hz is {info.control_hz}")
        fields = tuple(name for name in STEP_FIELDS if name in content["fields"])
        fingerprint = None if content["fingerprint"] is None else str(content["fingerprint"])

        def init_state_of(numbers: Sequence[float] | None) -> InitialState | None:
            if numbers is None:
                return None
            return InitialState.of(info.task, np.array(numbers, dtype=np.float64).reshape(-1))

        episodes: list[Recording] = []
        for entry in content["episodes"]:
            init_state = init_state_of(entry["init_state"])
            source, attempt = str(entry["source"]), int(entry["attempt"])
            episodes.append(Recording(steps={}, source=source, init_state=init_state, attempt=attempt))
        attempts: list[Attempt] = []
        for entry in content["attempts"]:
            init_state = init_state_of(entry["init_state"])
            if init_state is not None:
                num_steps, kept = int(entry["num_steps"]), bool(entry["kept"])
                attempts.append(Attempt(init_state=init_state, num_steps=num_steps, kept=kept))
        cameras: dict[str, RenderedFrames] = {}
        for name, entry in content["cameras"].items():
            settings = RenderSettings(**entry["settings"])
            cameras[str(name)] = RenderedFrames(settings=settings, renderer=str(entry["renderer"]))
        dims = {len(episode.init_state.rand_vec) for episode in episodes if episode.init_state}
        dims |= {len(attempt.init_state.rand_vec) for attempt in attempts}
        if not {"state", "action"} <= set(fields) or len(dims) > 1:
            raise ValueError("states or actions are missing, or initial states differ in length")
    except (ActKitError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{where / SIDECAR} is damaged ({one_line(error)}). Fix: copy it again, or delete it to import the data "
            "without its metadata."
        ) from error
    return Known(
        info=info, attempts=attempts, cameras=cameras, fingerprint=fingerprint, fields=fields, episodes=episodes
    )


def foreign(task: str, num_episodes: int, cameras: Sequence[str], layout: Layout, horizon: int, hz: int) -> Known:
    """Return the metadata of data that act_kit did not write, derived from its arrays.

    Raises:
        DatasetError: ``task`` is not a valid folder name.
    """
    if not _is_name(task):
        raise DatasetError(
            f"{some([task])!r} is not a valid task name: it must be at most {_NAME_BYTES} bytes of letters, digits, "
            "'_', '-' and '.'. Fix: --task NAME, such as pick-place-v3."
        )
    info = DatasetInfo(
        task=task,
        num_wanted=num_episodes,
        seed=None,
        init_distribution="unknown",
        demonstrator="imported",
        noise=0.0,
        steps_after_success=0,
        command="",
        versions=versions(),
        git_commit=git_commit(),
        horizon=horizon,
        control_hz=hz,
    )
    rendered: dict[str, RenderedFrames] = {}
    for camera in cameras:
        _, height, width, _ = layout[IMAGES + camera][0]
        settings = RenderSettings(height_px=height, width_px=width)
        rendered[camera] = RenderedFrames(settings=settings, renderer="imported")
    return Known(
        info=info,
        attempts=[],
        cameras=rendered,
        fingerprint=None,
        fields=("state", "action"),
        episodes=[Recording(steps={}, source="imported", init_state=None)] * num_episodes,
    )


# -- checks ------------------------------------------------------------------------------------------------------------


def _is_name(text: str) -> bool:
    """Return True if a name from an untrusted file is safe as the name of a file or folder."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None and len(text.encode()) <= _NAME_BYTES


def one_line(error: BaseException) -> str:
    """Return the first line of an error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def some(names: Sequence[str], most: int = 8) -> str:
    """Join names for a message; beyond ``most``, only their number is given."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 80 else name[:79] + "…" for name in names[:most]) + others


def check_layout(where: str, layout: Layout, like: Layout) -> int:
    """Check the arrays of an episode before any is read, and return its number of steps.

    Args:
        where: Name of the file, and of the episode if the file has several.
        layout: Arrays of the episode.
        like: Arrays of the first episode, whose shapes and cameras must be the same.

    Raises:
        DatasetError: The arrays are inconsistent, have a wrong rank or dtype, or declare too large a size.
    """
    num_bytes = sum(int(np.prod(shape, dtype=object)) * dtype.itemsize for shape, dtype in layout.values())
    if num_bytes > EPISODE_BYTES:
        raise DatasetError(
            f"{where} declares {num_bytes / 1e9:.0f} GB; an episode may have {EPISODE_BYTES / 1e9:.0f} GB at most."
        )
    for name, (shape, dtype) in layout.items():
        rank = 1 if name in ("reward", "success", "distance") else 2
        rank = 4 if name.startswith(IMAGES) else rank
        kinds = "fiu" if name.startswith(IMAGES) else "fiub"
        if len(shape) != rank or dtype.kind not in kinds or 0 in shape:
            raise DatasetError(
                f"{where}: {name} is {dtype} of shape {shape}; {rank} axes of numbers were expected, none empty."
            )
        if name.startswith(IMAGES) and not (shape[3] == 3 and min(shape[1:3]) >= 16 and max(shape[1:3]) <= 1024):
            raise DatasetError(f"{where}: {name} has shape {shape}; frames have 3 channels and sides of 16 to 1024 px.")
        camera = name.removeprefix(IMAGES)
        if not _is_name(camera) or camera in set(STEP_FIELDS) - {name}:
            raise DatasetError(
                f"{where}: {some([camera])!r} is not a valid camera name. Fix: rename it to at most {_NAME_BYTES} "
                "bytes of letters, digits, '_', '-' and '.'."
            )
    (num_steps, *_), _ = layout["action"]
    for name, (shape, _) in layout.items():
        if shape[0] != num_steps:
            raise DatasetError(f"{where}: {name} has {shape[0]} steps, the actions have {num_steps}.")
    shapes = {name: shape[1:] for name, (shape, _) in layout.items()}
    expected = {name: shape[1:] for name, (shape, _) in like.items()}
    if shapes != expected:
        raise DatasetError(
            f"{where} has {shapes}, the first episode {expected}: all episodes of a dataset must have the same arrays."
        )
    return num_steps


def check_steps(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """Convert one of ``STEP_FIELDS`` to the dtype in which it is stored.

    Raises:
        DatasetError: Values are not finite, before or after the conversion.
    """
    with np.errstate(over="ignore"):
        stored: np.ndarray = values.astype(dtype_of(name))
    if not np.isfinite(stored).all():
        raise DatasetError(f"{where}: {name} has values that are not finite (NaN or infinite).")
    return stored


def check_frames(where: str, camera: str, frames: np.ndarray) -> np.ndarray:
    """Convert frames to uint8; integers from 0 to 255 may be stored in another dtype.

    Raises:
        DatasetError: Values are not integers from 0 to 255.
    """
    if frames.dtype == np.uint8:
        return frames
    with np.errstate(invalid="ignore"):
        stored: np.ndarray = frames.astype(np.uint8)
    if not (stored == frames).all():
        raise DatasetError(f"{where}: the frames of {camera} are {frames.dtype}, but not integers from 0 to 255.")
    return stored


def check_known(where: Path, known: Known, layout: Layout, num_episodes: int) -> None:
    """Raise :class:`DatasetError` unless ``act_kit.json`` matches the arrays."""
    sizes = {name: shape[1:3] for name, (shape, _) in layout.items() if name.startswith(IMAGES)}
    declared: dict[str, tuple[int, ...]] = {}
    for name, rendered in known.cameras.items():
        declared[IMAGES + name] = (rendered.settings.height_px, rendered.settings.width_px)
    if len(known.episodes) != num_episodes or declared != sizes:
        raise DatasetError(
            f"{where / SIDECAR} is for {len(known.episodes)} episodes with frames {declared}; the data has "
            f"{num_episodes} with {sizes}. Fix: copy the data again, or delete {SIDECAR} to import the data without "
            "its metadata."
        )
