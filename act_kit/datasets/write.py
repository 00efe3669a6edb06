"""Writing of a whole dataset from existing episodes: derived from other datasets, or imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from act_kit.datasets.images import ImageStore, RenderedFrames
from act_kit.datasets.schema import DatasetInfo
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.rollouts.episode import AttemptRecord, Episode

_EPISODES_PER_WRITE = 50
"""Number of episodes written to disk together, since each write takes about 50 ms."""


def write_dataset(
    path: Path,
    info: DatasetInfo,
    recordings: Iterable[Episode],
    *,
    attempts: Sequence[AttemptRecord] = (),
    cameras: Mapping[str, RenderedFrames] | None = None,
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
        images[camera].begin(rendered.renderer)
    pending: list[Episode] = []
    for recording in chain([first], recordings):
        if _fields(recording) != _fields(first):
            both = f"{_fields(recording)}, by {recording.source}, and {_fields(first)}, by {first.source}"
            raise DatasetError(f"Episodes have different fields: {both}. Fix: choose episodes with the same fields.")
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


def _fields(recording: Episode) -> dict[str, tuple[int, ...]]:
    """Return the shape of one step of each field, with a field for the initial state if it is recorded."""
    fields = {name: values.shape[1:] for name, values in recording.steps.items()}
    return fields if recording.init_state is None else fields | {"init_state": ()}
