"""Images of a dataset: ``data/images/<camera>``, one frame per step, rendered after the collection, for any camera.

The attributes of the array hold the progress of the rendering and the SHA-256 of every episode's frames, and are
replaced atomically after the frames are written. Frames that are to replace existing ones are stored in
``data/images/<camera>.new`` until they are complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from act_kit.datasets.damage import as_dataset_error
from act_kit.datasets.schema import ArrayFiles
from act_kit.datasets.store import EpisodeStore, extend, set_attributes
from act_kit.errors import DatasetError
from act_kit.files import check_name, quoted, require_existing
from act_kit.outputs import discard
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import RenderSettings

_CHUNK_BYTES = 3_000_000
"""About one episode at 128 px: long chunks compress best and read fastest."""

_NEW = ".new"


@dataclass(frozen=True, kw_only=True)
class RenderedFrames:
    """Render settings and ``GL_RENDERER`` of the frames of a camera."""

    settings: RenderSettings
    renderer: str


class ImageStore:
    """The frames of one camera of a dataset, complete or partly rendered.

    Attributes:
        camera: Name of the camera.
        settings: Render settings of the frames.
        renderer: ``GL_RENDERER`` that rendered the frames, or "" before the first frame.
    """

    def __init__(self, store: EpisodeStore, camera: str, *, is_new: bool = False) -> None:
        """Open the frames of a camera, or with ``is_new`` the frames that are to replace them.

        Raises:
            DatasetError: The frames are damaged.
        """
        self._store = store
        self.camera = camera
        self._key = _key(camera, is_new=is_new)
        self._name = f"frames of {camera} in {store.path}"
        fix = f"act render {quoted(store.path)} --camera {camera} --overwrite"
        with as_dataset_error(f"The {self._name} are damaged", fix):
            files = ArrayFiles.read(store.path / self._key)
            self._frames: zarr.Array[Any] = store.group[self._key]  # type: ignore[assignment]
            attributes: dict[str, Any] = dict(self._frames.attrs)
            self.settings = RenderSettings.from_dict(attributes["settings"])
            self.renderer = str(attributes["gl_renderer"])
            self._digests = list(map(str, attributes["digests"]))
            self._num_steps = int(store.episode_lengths[: self.num_episodes].sum())
            if attributes["num_steps"] != self._num_steps or self.num_episodes > store.num_episodes:
                raise ValueError(f"{attributes['num_steps']} frames of {self.num_episodes} episodes")
            if files.dtype != np.uint8 or files.shape[1:] != _shape(self.settings) or files.shape[0] < self._num_steps:
                raise ValueError(f"{files.dtype} of shape {files.shape}")
            files.check_chunks()

    @staticmethod
    def cameras(store: EpisodeStore) -> tuple[str, ...]:
        """Return the names of the cameras that have frames, complete or not."""
        names: list[str] = []
        for file in store.path.glob("data/images/[!.]*/zarr.json"):
            if file.parent.suffix != _NEW:
                names.append(file.parent.name)
        return tuple(sorted(names))

    @staticmethod
    def find_new(store: EpisodeStore, camera: str) -> ImageStore | None:
        """Return the unfinished frames that are to replace those of a camera, or None."""
        exists = (store.path / _key(camera, is_new=True) / "zarr.json").exists()
        return ImageStore(store, camera, is_new=True) if exists else None

    @classmethod
    def create(cls, store: EpisodeStore, camera: str, settings: RenderSettings) -> ImageStore:
        """Create an empty array for a camera's frames.

        Existing complete frames are kept until :meth:`take_over` replaces them.
        """
        check_name(camera, "camera")
        discard(store.path / _key(camera, is_new=True), store.path)
        is_new = False
        if camera in cls.cameras(store):
            with suppress(DatasetError):
                is_new = cls(store, camera).is_complete
        if not is_new:
            discard(store.path / _key(camera, is_new=False), store.path)
        shape = _shape(settings)
        store.group.require_group("data/images")  # zarr would create it concurrently with the array, in any order
        store.group.create_array(
            _key(camera, is_new=is_new),
            shape=(0, *shape),
            chunks=(max(1, _CHUNK_BYTES // int(np.prod(shape))), *shape),
            dtype=np.uint8,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
            attributes={"settings": asdict(settings), "gl_renderer": "", "num_steps": 0, "digests": []},
        )
        return cls(store, camera, is_new=is_new)

    @property
    def rendered(self) -> RenderedFrames:
        """Render settings and renderer."""
        return RenderedFrames(settings=self.settings, renderer=self.renderer)

    @property
    def num_episodes(self) -> int:
        """Number of episodes whose frames are stored."""
        return len(self._digests)

    @property
    def is_complete(self) -> bool:
        """True if the frames of every episode are stored."""
        return self.num_episodes == self._store.num_episodes

    @property
    def command(self) -> str:
        """Command that renders these frames."""
        return f"act render {quoted(self._store.path)} --camera {self.camera} {self.settings.flags}"

    def begin(self, renderer: str) -> None:
        """Record the renderer and drop frames that an interrupted run has not committed.

        Raises:
            DatasetError: The existing frames come from another renderer, whose images differ slightly.
        """
        if self.renderer and self.renderer != renderer:
            both = f"rendered by '{self.renderer}', the renderer here is '{renderer}'"
            raise DatasetError(f"The {self._name} were {both}. Fix: render all of them again with --overwrite")
        self.renderer = renderer
        set_attributes(self._frames, {"gl_renderer": renderer})
        if self._frames.shape[0] > self._num_steps:
            self._frames.resize((self._num_steps, *self._frames.shape[1:]))

    def append(self, frames: np.ndarray) -> None:
        """Append the next episode's frames, uint8 (T, H, W, 3), atomically.

        Raises:
            OutputError: The dataset has been deleted in the meantime.
        """
        num_steps, digests = self._num_steps + len(frames), [*self._digests, _digest(frames)]
        with require_existing(self._store.path / "zarr.json", self._store.path):
            self._store.check_there()
            self._frames = extend(self._store.group, self._key, self._num_steps, frames)
            self._store.check_there()
            set_attributes(self._frames, {"num_steps": num_steps, "digests": digests})
        self._num_steps, self._digests = num_steps, digests

    def take_over(self) -> None:
        """Make these complete frames the frames of the camera, replacing any others."""
        new, old = self._store.path / _key(self.camera, is_new=True), self._store.path / _key(self.camera, is_new=False)
        if self._store.path / self._key == new:
            discard(old, self._store.path)
            new.rename(old)
        else:
            discard(new, self._store.path)

    def require_complete(self) -> None:
        """Raise :class:`DatasetError` if the rendering is unfinished, or frames are missing."""
        if not self.is_complete:
            num = f"{self.num_episodes} of {self._store.num_episodes} episodes"
            raise DatasetError(f"Only {num} have {self._name}. Resume with: {self.command}")
        if self._frames.nchunks_initialized < self._frames.nchunks:  # zarr would read zeros
            raise DatasetError(f"{self._store.path} lacks frames of {self.camera}. Fix: {self.command} --overwrite")

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the frames of all steps in blocks: the first step, and uint8 (N, H, W, 3), N up to a few hundred.

        Raises:
            DatasetError: The rendering is unfinished, or frames are missing.
        """
        self.require_complete()
        for begin in range(0, self._store.num_steps, self._frames.chunks[0]):
            yield begin, self._read(begin, min(begin + self._frames.chunks[0], self._store.num_steps))

    def episode(self, index: int) -> np.ndarray:
        """Read the frames of one episode, uint8 (T, H, W, 3)."""
        end = int(self._store.episode_ends[index])
        return self._read(end - int(self._store.episode_lengths[index]), end)

    def checked_episode(self, index: int) -> np.ndarray:
        """Read the frames of one episode and check their SHA-256.

        Raises:
            DatasetError: The frames differ from those that were rendered.
        """
        frames = self.episode(index)
        if self._digests[index] != _digest(frames):
            raise DatasetError(f"The {self._name} of episode {index} have changed. Fix: {self.command} --overwrite")
        return frames

    def first_frame(self, index: int) -> np.ndarray:
        """Read the first frame of one episode, uint8 (H, W, 3)."""
        begin = int(self._store.episode_ends[index] - self._store.episode_lengths[index])
        first: np.ndarray = self._read(begin, begin + 1)[0]
        return first

    def damaged_episodes(self) -> list[int]:
        """Read all frames and return the episodes whose frames differ from those that were rendered."""
        return [episode for episode, digest in enumerate(self._digests) if digest != _digest(self.episode(episode))]

    def _read(self, begin: int, end: int) -> np.ndarray:
        with as_dataset_error(f"The {self._name} cannot be read", f"{self.command} --overwrite"):
            return np.asarray(self._frames[begin:end])


def complete_images(store: EpisodeStore) -> list[ImageStore]:
    """Return the frames of all cameras of a dataset.

    Raises:
        DatasetError: The frames of a camera are incomplete or damaged.
    """
    images: list[ImageStore] = []
    for camera in ImageStore.cameras(store):
        images.append(ImageStore(store, camera))
        images[-1].require_complete()
    return images


def rendered_frames(store: EpisodeStore) -> dict[str, RenderedFrames]:
    """Return the render settings and the renderer of each camera; see :func:`complete_images`."""
    return {image.camera: image.rendered for image in complete_images(store)}


def iter_with_images(store: EpisodeStore, episodes: np.ndarray | None = None) -> Iterator[Episode]:
    """Yield the episodes of a dataset with their images, or those with the indices ``episodes``, int64, ascending."""
    images = complete_images(store)
    chosen = range(len(store)) if episodes is None else set(episodes.tolist())
    for index, recording in enumerate(store.iter_episodes()):
        if index in chosen:
            yield replace(recording, images={image.camera: image.checked_episode(index) for image in images})


def _key(camera: str, *, is_new: bool) -> str:
    return f"data/images/{camera}{_NEW if is_new else ''}"


def _shape(settings: RenderSettings) -> tuple[int, int, int]:
    return settings.height_px, settings.width_px, 3


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
