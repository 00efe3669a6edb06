"""Images of a dataset: ``data/images/<camera>``, one frame per step, rendered after the collection, for any camera.

The attributes of the array hold the progress of the rendering and the SHA-256 of every episode's frames, and are
replaced atomically after the frames are written. Frames that are to replace existing ones are stored in
``data/images/<camera>.new`` until they are complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from act_kit.datasets.array_files import ArrayFiles
from act_kit.datasets.store import EpisodeStore, set_attributes
from act_kit.errors import DatasetError
from act_kit.files import check_name, quoted, require_existing
from act_kit.outputs import discard
from act_kit.sim.render import RenderSettings

_CHUNK_BYTES = 3_000_000
"""About one episode at 128 px: long chunks compress best and read fastest."""

_NEW = ".new"


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
        self._is_new = is_new
        try:
            files = ArrayFiles.read(store.path / _key(camera, is_new=is_new))
            self._frames: zarr.Array[Any] = store.group[_key(camera, is_new=is_new)]  # type: ignore[assignment]
            attributes: dict[str, Any] = dict(self._frames.attrs)
            self.settings = RenderSettings(**attributes["settings"])
            self.renderer = str(attributes["gl_renderer"])
            self._digests = [str(digest) for digest in attributes["digests"]]
            self._num_steps = int(store.episode_lengths[: self.num_episodes].sum())
            if (attributes["num_steps"], self.num_episodes > store.num_episodes) != (self._num_steps, False):
                raise ValueError(f"{attributes['num_steps']} frames of {self.num_episodes} episodes")
            expected = (self.settings.height_px, self.settings.width_px, 3)
            if files.dtype != np.uint8 or files.shape[1:] != expected or files.shape[0] < self._num_steps:
                raise ValueError(f"{files.dtype} of shape {files.shape}")
            files.check_chunks()
        except Exception as error:
            raise DatasetError(
                f"The frames of {camera} in {store.path} are damaged: {error}. Fix: act render "
                f"{quoted(store.path)} --camera {camera} --overwrite"
            ) from error

    @staticmethod
    def cameras(store: EpisodeStore) -> tuple[str, ...]:
        """Return the names of the cameras that have frames, complete or not."""
        found = sorted(file.parent.name for file in store.path.glob("data/images/[!.]*/zarr.json"))
        return tuple(name for name in found if not name.endswith(_NEW))

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
        is_new = camera in cls.cameras(store) and cls._is_complete_at(store, camera)
        if not is_new:
            discard(store.path / _key(camera, is_new=False), store.path)
        shape = (settings.height_px, settings.width_px, 3)
        num_rows = max(1, _CHUNK_BYTES // int(np.prod(shape)))
        store.group.require_group("data/images")  # zarr would create it concurrently with the array, in any order
        store.group.create_array(
            _key(camera, is_new=is_new),
            shape=(0, *shape),
            chunks=(num_rows, *shape),
            dtype=np.uint8,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
            attributes={"settings": asdict(settings), "gl_renderer": "", "num_steps": 0, "digests": []},
        )
        return cls(store, camera, is_new=is_new)

    @classmethod
    def _is_complete_at(cls, store: EpisodeStore, camera: str) -> bool:
        try:
            return cls(store, camera).is_complete
        except DatasetError:
            return False

    @property
    def num_episodes(self) -> int:
        """Number of episodes whose frames are stored."""
        return len(self._digests)

    @property
    def is_complete(self) -> bool:
        """True if the frames of every episode are stored."""
        return self.num_episodes == self._store.num_episodes

    def begin(self, renderer: str) -> None:
        """Record the renderer and drop frames that an interrupted run has not committed.

        Raises:
            DatasetError: The existing frames come from another renderer, whose images differ slightly.
        """
        if self.renderer and self.renderer != renderer:
            raise DatasetError(
                f"The frames of {self.camera} in {self._store.path} were rendered by '{self.renderer}', the renderer "
                f"here is '{renderer}': their images differ. Fix: render all of them again with --overwrite"
            )
        self.renderer = renderer
        set_attributes(self._frames, {"gl_renderer": renderer})
        if self._frames.shape[0] > self._num_steps:
            self._frames.resize((self._num_steps, *self._frames.shape[1:]))

    def append(self, frames: np.ndarray) -> None:
        """Append the next episode's frames, uint8 (T, H, W, 3), atomically.

        Raises:
            OutputError: The dataset has been deleted in the meantime.
        """
        at, num_steps = self._num_steps, self._num_steps + len(frames)
        digests = [*self._digests, _digest(frames)]
        with require_existing(self._store.path / "zarr.json", self._store.path):
            self._store.check_there()
            with zarr.config.set({"array.write_empty_chunks": True}):  # then a missing chunk always means damage
                self._frames.resize((num_steps, *self._frames.shape[1:]))
                self._frames[at:] = frames
            self._store.check_there()
            set_attributes(self._frames, {"num_steps": num_steps, "digests": digests})
        self._num_steps, self._digests = num_steps, digests

    def take_over(self) -> None:
        """Make these complete frames the frames of the camera, replacing any others."""
        new = self._store.path / _key(self.camera, is_new=True)
        old = self._store.path / _key(self.camera, is_new=False)
        if self._is_new:
            discard(old, self._store.path)
            new.rename(old)
        else:
            discard(new, self._store.path)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the frames of all steps in blocks: the first step, and uint8 (N, H, W, 3), N up to a few hundred.

        Raises:
            DatasetError: The rendering is unfinished, or frames are missing.
        """
        if not self.is_complete:
            raise DatasetError(
                f"Only {self.num_episodes} of {self._store.num_episodes} episodes of {self._store.path} are rendered "
                f"from {self.camera}. Resume with: {self.command}"
            )
        if self._frames.nchunks_initialized < self._frames.nchunks:  # zarr would read zeros
            raise DatasetError(f"{self._store.path} lacks frames of {self.camera}. Fix: {self.command} --overwrite")
        for begin in range(0, self._store.num_steps, self._frames.chunks[0]):
            end = min(begin + self._frames.chunks[0], self._store.num_steps)
            yield begin, self._read(begin, end)

    def episode(self, index: int) -> np.ndarray:
        """Read the frames of one episode, uint8 (T, H, W, 3)."""
        ends = np.concatenate([[0], self._store.episode_ends])
        return self._read(int(ends[index]), int(ends[index + 1]))

    def checked_episode(self, index: int) -> np.ndarray:
        """Read the frames of one episode and check their SHA-256.

        Raises:
            DatasetError: The frames differ from those that were rendered.
        """
        frames = self.episode(index)
        if self._digests[index] != _digest(frames):
            raise DatasetError(
                f"{self._store.path}: the frames of {self.camera} of episode {index} differ from those that were "
                f"rendered. Fix: {self.command} --overwrite"
            )
        return frames

    def first_frame(self, index: int) -> np.ndarray:
        """Read the first frame of one episode, uint8 (H, W, 3)."""
        begin = int(self._store.episode_ends[index - 1]) if index else 0
        first: np.ndarray = self._read(begin, begin + 1)[0]
        return first

    def _read(self, begin: int, end: int) -> np.ndarray:
        try:
            return np.asarray(self._frames[begin:end])
        except Exception as error:
            raise DatasetError(
                f"The frames of {self.camera} in {self._store.path} cannot be read: {error}. Fix: "
                f"{self.command} --overwrite"
            ) from error

    @property
    def command(self) -> str:
        """Command that renders these frames."""
        return f"act render {quoted(self._store.path)} --camera {self.camera} --size {self.settings}"

    def damaged_episodes(self) -> list[int]:
        """Read all frames and return the episodes whose frames differ from those that were rendered."""
        return [episode for episode, digest in enumerate(self._digests) if digest != _digest(self.episode(episode))]


def _key(camera: str, *, is_new: bool) -> str:
    return f"data/images/{camera}{_NEW if is_new else ''}"


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
