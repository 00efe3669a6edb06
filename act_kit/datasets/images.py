"""Pictures in a dataset: ``data/images/<camera>``, one frame per step, drawn after the collection and in any number.

``meta/image_digests/<camera>`` holds the SHA-256 of every episode's frames and is written last: it says how far a
rendering has come, and whether the frames are what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.sim.render import RenderSettings

_CHUNK_BYTES = 3_000_000
"""About an episode at 128 px: long chunks compress best and read fastest."""


class ImageStore:
    """The frames of one camera of a dataset, complete or being drawn.

    Attributes:
        settings: What a frame looks like.
        renderer: ``GL_RENDERER`` of who drew them, or "" before the first.
    """

    def __init__(self, store: EpisodeStore, camera: str) -> None:
        self._store = store
        self.camera = camera
        self._frames: zarr.Array[Any] = store.group[f"data/images/{camera}"]  # type: ignore[assignment]
        self._digests: zarr.Array[Any] = store.group[f"meta/image_digests/{camera}"]  # type: ignore[assignment]
        attributes: dict[str, Any] = dict(self._frames.attrs)
        self.settings = RenderSettings(**attributes["settings"])
        self.renderer = str(attributes["gl_renderer"])

    @staticmethod
    def cameras(store: EpisodeStore) -> tuple[str, ...]:
        """Name the cameras whose frames are there, complete or not."""
        frames, digests = store.group.get("data/images"), store.group.get("meta/image_digests")
        if not isinstance(frames, zarr.Group) or not isinstance(digests, zarr.Group):
            return ()
        return tuple(sorted(set(frames.array_keys()) & set(digests.array_keys())))

    @classmethod
    def create(cls, store: EpisodeStore, camera: str, settings: RenderSettings) -> ImageStore:
        """Make room for a camera's frames, in place of any that are there."""
        shape = (settings.height_px, settings.width_px, 3)
        # First, so that a kill in between leaves frames that nothing vouches for, not digests without frames.
        store.group.create_array(
            f"meta/image_digests/{camera}", shape=(0, 32), chunks=(1024, 32), dtype=np.uint8, overwrite=True
        )
        store.group.create_array(
            f"data/images/{camera}", shape=(0, *shape), chunks=(max(1, _CHUNK_BYTES // int(np.prod(shape))), *shape),
            dtype=np.uint8, compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"), overwrite=True,
            attributes={"settings": asdict(settings), "gl_renderer": ""},
        )  # fmt: skip
        return cls(store, camera)

    @property
    def num_episodes(self) -> int:
        """Episodes whose frames are there."""
        return int(self._digests.shape[0])

    @property
    def is_complete(self) -> bool:
        """Whether every episode's frames are there."""
        return self.num_episodes == self._store.num_episodes

    def begin(self, renderer: str) -> None:
        """Note who draws, or go on after whoever drew before: drop what a kill left half written.

        Raises:
            DatasetError: The frames so far were drawn by something else, whose pictures differ a little.
        """
        if self.renderer and self.renderer != renderer:
            raise DatasetError(
                f"The frames of {self.camera} in {self._store.path} were drawn by '{self.renderer}', here draws "
                f"'{renderer}': two halves would differ. Draw them all anew: --overwrite"
            )
        self.renderer = renderer
        self._frames.attrs["gl_renderer"] = renderer
        ends = np.concatenate([[0], self._store.episode_ends])
        self._frames.resize((int(ends[self.num_episodes]), *self._frames.shape[1:]))

    def append(self, frames: np.ndarray) -> None:
        """Add the next episode's frames, uint8 (T, H, W, 3); they are there afterwards, or not at all."""
        at, episode = self._frames.shape[0], self.num_episodes
        with zarr.config.set({"array.write_empty_chunks": True}):  # a missing chunk is then always damage
            self._frames.resize((at + len(frames), *self._frames.shape[1:]))
            self._frames[at:] = frames
            self._digests.resize((episode + 1, 32))
            self._digests[episode] = _digest(frames)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Read the frames of all steps, uint8 (N, H, W, 3), a few hundred at a time, each time with the first's step.

        Raises:
            DatasetError: The rendering is not finished, or frames are missing.
        """
        if not self.is_complete:
            raise DatasetError(
                f"Only {self.num_episodes} of {self._store.num_episodes} episodes of {self._store.path} are drawn from "
                f"{self.camera}. Go on: {self.command}"
            )
        if self._frames.nchunks_initialized < self._frames.nchunks:  # zarr would read zeros
            raise DatasetError(
                f"{self._store.path} lacks frames of {self.camera}. Draw them anew: {self.command} --overwrite"
            )
        for begin in range(0, self._store.num_steps, self._frames.chunks[0]):
            end = min(begin + self._frames.chunks[0], self._store.num_steps)
            yield begin, np.asarray(self._frames[begin:end])

    def episode(self, index: int) -> np.ndarray:
        """Read the frames of one episode, uint8 (T, H, W, 3)."""
        ends = np.concatenate([[0], self._store.episode_ends])
        return np.asarray(self._frames[ends[index] : ends[index + 1]])

    def first_frame(self, index: int) -> np.ndarray:
        """Read the first frame of one episode, uint8 (H, W, 3)."""
        return np.asarray(self._frames[int(self._store.episode_ends[index - 1]) if index else 0])

    @property
    def command(self) -> str:
        """The command that draws these frames."""
        return f"act render {self._store.path} --camera {self.camera} --size {self.settings}"

    def damaged_episodes(self) -> list[int]:
        """Read everything and return the episodes whose frames are not what was drawn."""
        digests = np.asarray(self._digests[:])
        return [
            episode
            for episode, digest in enumerate(digests)
            if not np.array_equal(digest, _digest(self.episode(episode)))
        ]


def _digest(frames: np.ndarray) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(frames).tobytes()).digest(), dtype=np.uint8)
