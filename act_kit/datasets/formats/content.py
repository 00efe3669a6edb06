"""What a dataset holds, whatever its format; what may be taken from a file that anybody may have written.

Datasets that go out are accompanied by ``act_kit.json``, in which other readers have no interest: what it says of
starts, sources and attempts comes back with them.
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
from act_kit.datasets.store import DatasetInfo, EpisodeStore
from act_kit.datasets.write import Drawn
from act_kit.errors import ActKitError, DatasetError
from act_kit.files import quoted
from act_kit.rollouts.episode import STEP_FIELDS, Attempt, Recording, dtype_of
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import RenderSettings
from act_kit.versions import git_commit, versions

SIDECAR = "act_kit.json"
EPISODE_BYTES = 6_000_000_000
"""The most that an episode may declare: 1,500 steps of four cameras at 480x640 are 5.5 GB. Files of a few kilobytes can
declare terabytes, so nothing is allocated before this was checked."""

_NAME_BYTES = 120
"""Of the name of a camera or task, which names files: they may have 255, a suffix included."""

IMAGES = "images/"
"""How the names of cameras begin in a :data:`Layout`."""

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of every array of an episode, known before any is read."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The names of the arrays to take for states and actions; "" for the format's own."""

    state: str = ""
    action: str = ""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A dataset, about to be written in another format.

    Attributes:
        info: What it says about itself.
        num_episodes: How many there are.
        recordings: The episodes with their images, one at a time, once.
        attempts: What they came of, if that is known.
        cameras: Whose images they have.
        fingerprint: Of the dataset of act_kit that this is, or was exported from; None where it was not.
        notes: What is said to the user: what could not be taken along, and what was assumed.
    """

    info: DatasetInfo
    num_episodes: int
    recordings: Iterator[Recording]
    attempts: Sequence[Attempt]
    cameras: Mapping[str, Drawn]
    fingerprint: str | None
    notes: list[str] = field(default_factory=list)


def of_store(store: EpisodeStore) -> Content:
    """Return the content of a dataset of act_kit.

    Raises:
        DatasetError: It is not finished, or some of its pictures are missing.
    """
    if store.fingerprint is None:
        again = f"{store.info.command} --out {quoted(store.path)} --resume"
        raise DatasetError(f"{store.path} is not finished. Resume with: {again}")
    store.check_content()
    images = [ImageStore(store, camera) for camera in ImageStore.cameras(store)]
    for image in images:
        next(image.blocks(), None)  # complains of what is missing

    def recordings() -> Iterator[Recording]:
        for index, recording in enumerate(store.recordings()):
            yield replace(recording, images={image.camera: image.checked_episode(index) for image in images})

    return Content(
        info=store.info,
        num_episodes=store.num_episodes,
        recordings=recordings(),
        attempts=store.attempts(),
        cameras={image.camera: Drawn(settings=image.settings, renderer=image.renderer) for image in images},
        fingerprint=store.fingerprint,
    )


# -- the companion -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a dataset besides its arrays.

    Attributes:
        info, attempts, cameras, fingerprint: As in :class:`Content`.
        fields: Which of ``STEP_FIELDS`` its arrays are.
        episodes: Of each its source, start and attempt.
    """

    info: DatasetInfo
    attempts: Sequence[Attempt]
    cameras: Mapping[str, Drawn]
    fingerprint: str | None
    fields: tuple[str, ...]
    episodes: Sequence[Recording]


def to_json(content: Content, fields: Sequence[str], episodes: Sequence[Recording]) -> dict[str, Any]:
    """Return what ``act_kit.json`` says; floats survive JSON to the bit."""
    return {
        "format": "act_kit.export",
        "version": 1,
        "fingerprint": content.fingerprint,
        "info": asdict(content.info),
        "fields": list(fields),
        "cameras": {name: asdict(drawn) for name, drawn in content.cameras.items()},
        "attempts": [
            {"init_state": a.init_state.rand_vec, "num_steps": a.num_steps, "kept": a.kept} for a in content.attempts
        ],
        "episodes": [
            {"init_state": e.init_state and e.init_state.rand_vec, "source": e.source, "attempt": e.attempt}
            for e in episodes
        ],
    }


def from_json(where: Path, text: bytes) -> Known:
    """Return what ``act_kit.json`` says.

    Raises:
        DatasetError: Somebody has edited it.
    """
    try:
        said = json.loads(text)
        info = DatasetInfo(**said["info"])
        if (said["format"], said["version"]) != ("act_kit.export", 1):
            raise ValueError("of another version")
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
        fields = tuple(name for name in STEP_FIELDS if name in said["fields"])
        fingerprint = None if said["fingerprint"] is None else str(said["fingerprint"])

        def init_state_of(numbers: Sequence[float] | None) -> InitialState | None:
            return (
                None if numbers is None else InitialState.of(info.task, np.array(numbers, dtype=np.float64).reshape(-1))
            )

        episodes = [
            Recording(
                steps={}, source=str(e["source"]), init_state=init_state_of(e["init_state"]), attempt=int(e["attempt"])
            )
            for e in said["episodes"]
        ]
        attempts = [
            Attempt(init_state=begin, num_steps=int(a["num_steps"]), kept=bool(a["kept"]))
            for a in said["attempts"]
            if (begin := init_state_of(a["init_state"])) is not None
        ]
        cameras = {
            str(name): Drawn(settings=RenderSettings(**drawn["settings"]), renderer=str(drawn["renderer"]))
            for name, drawn in said["cameras"].items()
        }
        init_states = [e.init_state.rand_vec for e in episodes if e.init_state] + [
            a.init_state.rand_vec for a in attempts
        ]
        if not {"state", "action"} <= set(fields) or len({len(s) for s in init_states}) > 1:
            raise ValueError("without states, actions or starts that are alike")
    except (ActKitError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{where / SIDECAR} is damaged ({one_line(error)}). Without this file, what it says is simply not known."
        ) from error
    return Known(
        info=info, attempts=attempts, cameras=cameras, fingerprint=fingerprint, fields=fields, episodes=episodes
    )


def foreign(task: str, num_episodes: int, cameras: Sequence[str], layout: Layout, horizon: int, hz: int) -> Known:
    """Return what is known of data that others made: nothing but what their arrays show.

    Raises:
        DatasetError: No folder can be called as the task is.
    """
    if not _is_name(task):
        raise DatasetError(f"A task cannot be called {some([task])!r}. Name it: --task NAME, such as pick-place-v3.")
    info = DatasetInfo(
        task=task, num_wanted=num_episodes, seed=None, init_distribution="unknown", demonstrator="imported", noise=0.0,
        steps_after_success=0, command="", versions=versions(), git_commit=git_commit(), horizon=horizon, control_hz=hz,
    )  # fmt: skip
    shapes = {camera: layout[IMAGES + camera][0] for camera in cameras}
    return Known(
        info=info,
        attempts=[],
        cameras={
            camera: Drawn(settings=RenderSettings(height_px=height, width_px=width), renderer="imported")
            for camera, (_, height, width, _) in shapes.items()
        },
        fingerprint=None,
        fields=("state", "action"),
        episodes=[Recording(steps={}, source="imported", init_state=None)] * num_episodes,
    )


# -- checks ------------------------------------------------------------------------------------------------------------


def _is_name(text: str) -> bool:
    """Tell whether a file or folder may be called so, whatever file the name comes from."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None and len(text.encode()) <= _NAME_BYTES


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def some(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message, and of many the number of the others."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 80 else name[:79] + "…" for name in names[:most]) + others


def check_layout(where: str, layout: Layout, like: Layout) -> int:
    """Check the arrays of an episode before any is read, and return its number of steps.

    Args:
        where: The file, and of several episodes in it the episode.
        layout: Its arrays.
        like: Those of the first episode, which have the same shapes and cameras.

    Raises:
        DatasetError: They do not belong together, have another rank or type than they must, or declare far too much.
    """
    num_bytes = sum(int(np.prod(shape, dtype=object)) * dtype.itemsize for shape, dtype in layout.values())
    if num_bytes > EPISODE_BYTES:
        raise DatasetError(
            f"{where} declares {num_bytes / 1e9:.0f} GB; an episode may have {EPISODE_BYTES / 1e9:.0f} GB."
        )
    for name, (shape, dtype) in layout.items():
        rank = 4 if name.startswith(IMAGES) else 1 if name in ("reward", "success", "distance") else 2
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
                f"{where}: a camera cannot be called {some([camera])!r}. Rename it: at most {_NAME_BYTES} bytes of "
                "letters, digits, '_', '-' and '.'."
            )
    (num_steps, *_), _ = layout["action"]
    for name, (shape, _) in layout.items():
        if shape[0] != num_steps:
            raise DatasetError(f"{where}: {name} has {shape[0]} steps, the actions have {num_steps}.")
    here, there = ({name: shape[1:] for name, (shape, _) in each.items()} for each in (layout, like))
    if here != there:
        raise DatasetError(f"{where} has {here}, the first episode {there}: a dataset needs the same of all.")
    return num_steps


def check_steps(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """Return one of ``STEP_FIELDS`` in the type it is stored in.

    Raises:
        DatasetError: Numbers are not finite, or not after the conversion.
    """
    with np.errstate(over="ignore"):
        stored: np.ndarray = values.astype(dtype_of(name))
    if not np.isfinite(stored).all():
        raise DatasetError(f"{where}: {name} has numbers that are not finite (NaN or infinite).")
    return stored


def check_frames(where: str, camera: str, frames: np.ndarray) -> np.ndarray:
    """Return frames as uint8; whole numbers from 0 to 255 may have been stored as another type.

    Raises:
        DatasetError: They are something else.
    """
    if frames.dtype == np.uint8:
        return frames
    with np.errstate(invalid="ignore"):
        stored: np.ndarray = frames.astype(np.uint8)
    if not (stored == frames).all():
        raise DatasetError(f"{where}: the frames of {camera} are {frames.dtype}, and not whole numbers from 0 to 255.")
    return stored


def check_known(where: Path, known: Known, layout: Layout, num_episodes: int) -> None:
    """Raise :class:`DatasetError` unless ``act_kit.json`` is about these arrays."""
    sizes = {name: shape[1:3] for name, (shape, _) in layout.items() if name.startswith(IMAGES)}
    said = {IMAGES + name: (d.settings.height_px, d.settings.width_px) for name, d in known.cameras.items()}
    if len(known.episodes) != num_episodes or said != sizes:
        raise DatasetError(
            f"{where / SIDECAR} is about {len(known.episodes)} episodes with frames {said}; there are {num_episodes} "
            f"with {sizes}. Without this file, what it says is simply not known."
        )
