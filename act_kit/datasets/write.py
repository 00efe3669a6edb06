"""Writing a dataset in one go, out of episodes that exist already: derived from other datasets, or imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import DatasetInfo, EpisodeStore
from act_kit.errors import DatasetError
from act_kit.rollouts.episode import Attempt, Recording
from act_kit.sim.render import RenderSettings

_AT_A_TIME = 50
"""Episodes between two writes to disk, against about 50 ms for each."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How the frames of a camera were made: what they look like, and ``GL_RENDERER`` of who drew them."""

    settings: RenderSettings
    renderer: str


def write_dataset(
    path: Path,
    info: DatasetInfo,
    recordings: Iterable[Recording],
    *,
    attempts: Sequence[Attempt] = (),
    cameras: Mapping[str, Drawn] | None = None,
) -> EpisodeStore:
    """Write a finished dataset to ``path``, where nothing is yet; see :func:`~act_kit.files.new_folder`.

    Args:
        path: Where.
        info: What it says about itself.
        recordings: At least one; all with the same things recorded, and with images of all ``cameras``.
        attempts: What they came of; those that were kept are, in order, the recordings'.
        cameras: Whose images are stored.

    Raises:
        DatasetError: There is no recording, or they do not hold the same things.
    """
    recordings = iter(recordings)
    first = next(recordings, None)
    if first is None:
        raise DatasetError(f"Nothing is left to write to {path}: no episode was chosen.")
    store = EpisodeStore.create(path, info, first)
    store.append([], attempts)
    images = {camera: ImageStore.create(store, camera, drawn.settings) for camera, drawn in (cameras or {}).items()}
    for camera, drawn in (cameras or {}).items():
        images[camera].begin(drawn.renderer)
    some: list[Recording] = []
    for recording in chain([first], recordings):
        _check_alike(recording, first)
        for camera, target in images.items():
            target.append(recording.images[camera])
        some.append(replace(recording, images={}))  # whose images of hundreds of megabytes need not wait
        if len(some) == _AT_A_TIME:
            store.append(some, [])
            some = []
    if some:
        store.append(some, [])
    store.finish()
    return EpisodeStore.open(path)


def _check_alike(recording: Recording, first: Recording) -> None:
    here, there = ({n: v.shape[1:] for n, v in r.steps.items()} for r in (recording, first))
    if here != there or (recording.init_state is None) != (first.init_state is None):
        raise DatasetError(
            f"An episode by {recording.source} holds {here}, the first one, by {first.source}, {there}: a dataset "
            "needs the same of all, starts included. Choose episodes that are alike."
        )
