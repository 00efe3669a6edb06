"""Image rendering of a collected dataset from its recorded physics: parallel, resumable, with any cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import quoted
from act_kit.parallel import Executor
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import RenderSettings, check_cameras, render_episode


def render(
    store: EpisodeStore,
    cameras: Sequence[str],
    settings: RenderSettings,
    *,
    executor: Executor,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> None:
    """Render every step of a finished, writable dataset with every camera, or resume an interrupted rendering.

    ``executor``'s processes need a GL library in their environment (:func:`~act_kit.sim.render.find_gl`).

    Raises:
        DatasetError: The collection is not finished, its physics were not recorded, or it has frames of other settings
            or of another GL library.
    """
    check_cameras(cameras)
    if store.fingerprint is None:
        raise DatasetError(
            f"The collection of {store.path} is not finished. Resume with: {store.info.command} --out "
            f"{quoted(store.path)} --resume"
        )
    if {"init_state", "physics"} & set(store.missing_fields):
        raise DatasetError(
            f"{store.path} was imported without {', '.join(store.missing_fields)}: expected initial states and "
            "physics, from which images are rendered."
        )
    store.recover()  # a killed rendering leaves incomplete files
    store.check_content()
    # All cameras are checked before the first one is created: an error changes nothing.
    existing = {camera: None if overwrite else _find_resumable(store, camera, settings) for camera in cameras}
    targets = [target or ImageStore.create(store, camera, settings) for camera, target in existing.items()]
    first = min(target.num_episodes for target in targets)
    physics = store.steps_by_episode("physics")
    jobs: list[tuple[RenderSettings, list[str], InitialState, np.ndarray]] = []
    for episode, init_state in enumerate(store.init_states[first:], start=first):
        missing = [target.camera for target in targets if target.num_episodes <= episode]
        jobs.append((settings, missing, init_state, physics[episode]))
    started: set[str] = set()
    on_progress(first)
    with closing(executor.map(render_episode, jobs)) as results:
        for episode, frames in enumerate(results, start=first):
            incomplete = [target for target in targets if target.num_episodes <= episode]
            for column, target in enumerate(incomplete):
                if target.camera not in started or target.renderer != frames.renderer:
                    target.begin(frames.renderer)
                    started.add(target.camera)
                target.append(frames.images[:, column])
            on_progress(episode + 1)
    for target in targets:
        target.take_over()


def _find_resumable(store: EpisodeStore, camera: str, settings: RenderSettings) -> ImageStore | None:
    """Return the frames of a camera to resume, which may be about to replace others; None if there are none.

    Raises:
        DatasetError: The camera has frames of other settings.
    """
    new = ImageStore.find_new(store, camera)
    candidates = [new] if new is not None else []
    if camera in ImageStore.cameras(store):
        candidates.append(ImageStore(store, camera))
    for candidate in candidates:
        if candidate.settings == settings:
            return candidate
    if candidates:
        raise DatasetError(
            f"{store.path} has frames of {camera} at {candidates[-1].settings}, not the {settings} requested. "
            "Fix: render them again with --overwrite"
        )
    return None
