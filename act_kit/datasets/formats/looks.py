"""Looks of imported images: which camera and which look of Meta-World draw them.

A policy is evaluated on images that are drawn here. So the first frame of imported data is compared with what each look
draws of Meta-World's reset, and the nearest look is recorded with the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from act_kit.datasets.formats.content import Content
from act_kit.datasets.images import RenderedFrames
from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import InitialState
from act_kit.sim.looks import LOOKS
from act_kit.sim.render import CAMERAS, RenderSettings, find_gl, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS, get_task

MAX_DIFFERENCE = 12.0
"""Mean difference of pixels, 0 to 255: more than by the lossy compression of a video, less than between two cameras."""


@dataclass(frozen=True, kw_only=True)
class _Match:
    """The camera of a look whose image is nearest to a frame, and the mean difference of their pixels, 0 to 255."""

    look: str
    camera: str
    difference: float

    def __str__(self) -> str:
        return f"{self.camera} of the look {self.look} (mean difference {self.difference:.1f} of 255)"


def match_looks(content: Content) -> Content:
    """Return the content with the look that draws its images, or with a warning that none does.

    All cameras get one look. A camera with a name that Meta-World does not have is renamed to the one that draws its
    images. Data of other tasks, and those whose look is known, are returned as they are.
    """
    if content.fingerprint is not None or not content.cameras or content.info.task not in TASKS:
        return content
    recordings = iter(content.recordings)
    first = next(recordings)
    content = replace(content, recordings=chain([first], recordings))
    frames = {camera: images[0] for camera, images in first.images.items()}
    try:
        matches = _nearest_look(frames, _init_state(content))
    except RenderError as error:
        warning = f"the look of the images is unknown, 'fast' is assumed: {error}"
        return replace(content, warnings=[*content.warnings, warning])
    return _with_matches(content, matches)


def _init_state(content: Content) -> InitialState:
    """Return the first initial state; if it is unknown, the middle of the task's box, since a look shows in any."""
    known = content.episodes[0].init_state
    if known is not None:
        return known
    task = get_task(content.info.task)
    return InitialState.of(task.name, (np.array(task.low) + np.array(task.high)) / 2)


def _nearest_look(frames: Mapping[str, np.ndarray], init_state: InitialState) -> dict[str, _Match]:
    """Return the camera that draws each frame, uint8 (H, W, 3), in the look that is nearest to all of them.

    Raises:
        RenderError: No OpenGL library works.
    """
    physics = _reset_physics(init_state)
    candidates = {name: (name,) if name in CAMERAS else CAMERAS for name in frames}
    jobs: list[tuple[RenderSettings, tuple[str, ...], InitialState, np.ndarray]] = []
    for look in LOOKS:
        for name, frame in frames.items():
            settings = RenderSettings(height_px=frame.shape[0], width_px=frame.shape[1], look=look)
            jobs.append((settings, candidates[name], init_state, physics))
    nearest: dict[str, dict[str, _Match]] = {look: {} for look in LOOKS}
    with LocalExecutor(1, find_gl().environment) as executor:
        names = chain.from_iterable(frames for _ in LOOKS)
        for name, (settings, cameras, *_), drawn in zip(names, jobs, executor.map(render_episode, jobs), strict=True):
            differences = np.abs(drawn.images[0].astype(np.float64) - frames[name]).mean(axis=(1, 2, 3))
            best = int(differences.argmin())
            nearest[settings.look][name] = _Match(
                look=settings.look, camera=cameras[best], difference=float(differences[best])
            )
    return min(nearest.values(), key=lambda matches: sum(match.difference for match in matches.values()))


def _reset_physics(init_state: InitialState) -> np.ndarray:
    """Return the physics after a reset, float64 (1, P)."""
    simulator = Simulator(init_state.task)
    simulator.reset(init_state)
    return simulator.physics()[None]


def render_reset(settings: RenderSettings, cameras: Sequence[str], init_state: InitialState) -> np.ndarray:
    """Render a reset from some cameras, uint8 (C, H, W, 3).

    Raises:
        RenderError: No OpenGL library works.
    """
    with LocalExecutor(1, find_gl().environment) as executor:
        (frames,) = executor.map(render_episode, [(settings, cameras, init_state, _reset_physics(init_state))])
    images: np.ndarray = frames.images[0]
    return images


def _with_matches(content: Content, matches: Mapping[str, _Match]) -> Content:
    """Return the content with the looks of its images recorded, its cameras renamed, and messages about both."""
    notes: list[str] = []
    warnings: list[str] = []
    renamed: dict[str, str] = {}
    cameras: dict[str, RenderedFrames] = {}
    for name, match in matches.items():
        is_match = match.difference <= MAX_DIFFERENCE
        is_free = match.camera not in (*matches, *cameras)
        renamed[name] = match.camera if is_match and is_free else name
        settings = replace(content.cameras[name].settings, look=match.look)
        cameras[renamed[name]] = replace(content.cameras[name], settings=settings)
        if is_match:
            called = f", and are called {match.camera}" if renamed[name] != name else ""
            notes.append(f"the images of {name} are those of {match}{called}")
        else:
            warnings.append(
                f"no look draws the images of {name}: the nearest is {match}; up to {MAX_DIFFERENCE:g} were expected. "
                "It is recorded, but a policy trained on these images sees other ones in an evaluation"
            )

    def with_names(recording: Episode) -> Episode:
        return replace(recording, images={renamed[name]: images for name, images in recording.images.items()})

    return replace(
        content,
        cameras=cameras,
        recordings=map(with_names, content.recordings),
        notes=[*content.notes, *notes],
        warnings=[*content.warnings, *warnings],
    )
