"""Pictures for a dataset, drawn from its recorded physics: afterwards, in parallel, resumable, from any cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import quoted
from act_kit.parallel import Executor
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
    """Draw every step of a finished, writable dataset from every camera, or resume what is there.

    ``executor``'s processes need a GL library in their environment (:func:`~act_kit.sim.render.find_gl`).

    Raises:
        DatasetError: The collection is not finished, its physics were not recorded, or frames are there of other
            settings or another GL library.
    """
    check_cameras(cameras)
    if store.fingerprint is None:
        raise DatasetError(
            f"The collection of {store.path} is not finished. First: {store.info.command} --out "
            f"{quoted(store.path)} --resume"
        )
    if {"init_state", "physics"} & set(store.lacks):
        raise DatasetError(f"{store.path} was imported without what pictures are drawn from: {', '.join(store.lacks)}.")
    store.recover()  # of a rendering that was killed, torn files are left
    store.check_content()
    begun = {camera: None if overwrite else _find_begun(store, camera, settings) for camera in cameras}
    targets = [there or ImageStore.create(store, camera, settings) for camera, there in begun.items()]
    first = min(target.num_episodes for target in targets)
    physics = np.split(store.steps("physics"), store.episode_ends[:-1])
    jobs = [
        (
            settings,
            [target.camera for target in targets if target.num_episodes <= episode],
            init_state,
            physics[episode],
        )
        for episode, init_state in enumerate(store.init_states)
        if episode >= first
    ]
    told: set[str] = set()
    on_progress(first)
    with closing(executor.map(render_episode, jobs)) as outcomes:
        for episode, frames in enumerate(outcomes, start=first):
            lacking = [target for target in targets if target.num_episodes <= episode]
            for column, target in enumerate(lacking):
                if target.camera not in told or target.renderer != frames.renderer:
                    target.begin(frames.renderer)
                    told.add(target.camera)
                target.append(frames.images[:, column])
            on_progress(episode + 1)
    for target in targets:
        target.take_over()


def _find_begun(store: EpisodeStore, camera: str, settings: RenderSettings) -> ImageStore | None:
    """Return the frames of a camera that are to be resumed, also those that replace others; None if there are none.

    Raises:
        DatasetError: There are frames of other settings.
    """
    there = [ImageStore.find_new(store, camera)]
    there += [ImageStore(store, camera)] if camera in ImageStore.cameras(store) else []
    images = [image for image in there if image is not None]
    for image in images:
        if image.settings == settings:
            return image
    if images:
        raise DatasetError(
            f"{store.path} has frames of {camera} at {images[-1].settings}, not the {settings} asked for. "
            "Draw them anew: --overwrite"
        )
    return None
