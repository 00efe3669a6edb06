"""Writing of a whole dataset from existing episodes: derived from other datasets, or imported."""

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

_EPISODES_PER_WRITE = 50
"""Number of episodes written to disk together, since each write takes about 50 ms."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Render settings and ``GL_RENDERER`` of the frames of a camera."""

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
    """Write a finished dataset to ``path``, where nothing exists yet; see :func:`~act_kit.outputs.new_folder`.

    Args:
        path: Folder of the dataset.
        info: Metadata of the dataset.
        recordings: At least one episode; all with the same fields, and with images of all ``cameras``.
        attempts: Attempts of the collection; those that were kept belong, in order, to the episodes.
        cameras: Cameras whose images are stored.

    Raises:
        DatasetError: There is no episode, or the episodes have different fields.
    """
    recordings = iter(recordings)
    first = next(recordings, None)
    if first is None:
        raise DatasetError(f"There is nothing to write to {path}: no episode was selected.")
    store = EpisodeStore.create(path, info, first)
    store.append([], attempts)
    images: dict[str, ImageStore] = {}
    for camera, rendered in (cameras or {}).items():
        images[camera] = ImageStore.create(store, camera, rendered.settings)
    for camera, rendered in (cameras or {}).items():
        images[camera].begin(rendered.renderer)
    pending: list[Recording] = []
    for recording in chain([first], recordings):
        _check_alike(recording, first)
        for camera, target in images.items():
            target.append(recording.images[camera])
        pending.append(replace(recording, images={}))  # the images, hundreds of megabytes, are written already
        if len(pending) == _EPISODES_PER_WRITE:
            store.append(pending, [])
            pending = []
    if pending:
        store.append(pending, [])
    store.finish()
    return EpisodeStore.open(path)


def _check_alike(recording: Recording, first: Recording) -> None:
    fields = {name: values.shape[1:] for name, values in recording.steps.items()}
    expected = {name: values.shape[1:] for name, values in first.steps.items()}
    if fields != expected or (recording.init_state is None) != (first.init_state is None):
        raise DatasetError(
            f"An episode by {recording.source} has the fields {fields}, the first one, by {first.source}, {expected}: "
            "all episodes of a dataset must have the same fields, and all or none initial states. Fix: choose such "
            "episodes."
        )
