"""Files in the formats of other projects, written by the code of those projects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import h5py
import numcodecs
import numpy as np
import zarr
from PIL import Image


def write_aloha_episode(file: Path, *, steps: int = 6, seed: int = 0, cameras: tuple[str, ...] = ("top",)) -> None:
    """Write an episode as ``record_sim_episodes.py`` of ACT does, including 480x640 frames.

    ACT specifies no dtype for the other arrays, which makes them float32.
    """
    rng = np.random.default_rng(seed)
    with h5py.File(file, "w", rdcc_nbytes=1024**2 * 2) as root:
        root.attrs["sim"] = True
        obs = root.create_group("observations")
        image = obs.create_group("images")
        for cam_name in cameras:
            image.create_dataset(cam_name, (steps, 480, 640, 3), dtype="uint8", chunks=(1, 480, 640, 3))
        obs.create_dataset("qpos", (steps, 14), "f4")
        obs.create_dataset("qvel", (steps, 14), "f4")
        root.create_dataset("action", (steps, 14), "f4")
        for name in ("observations/qpos", "observations/qvel", "action"):
            root[name][...] = rng.normal(size=(steps, 14))
        for cam_name in cameras:
            root[f"observations/images/{cam_name}"][...] = rng.integers(0, 256, (steps, 480, 640, 3), np.uint8)


def smooth_frames(steps: int) -> np.ndarray:
    """Return frames with small JPEG errors and distinct channels, uint8 (T, 32, 48, 3)."""
    ramp = np.broadcast_to(np.linspace(0, 60, 48).astype(np.uint8), (steps, 32, 48))
    return np.stack([200 + ramp // 2, 100 + ramp, ramp], axis=-1)


def compress_episode(file: Path, frames: np.ndarray) -> None:
    """Compress the frames as ``compress_data.py`` of act-plus-plus does: OpenCV treats the first channel as blue."""
    jpegs = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(buffer, "JPEG", quality=95)
        jpegs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    with h5py.File(file, "r+") as root:
        root.attrs["compress"] = True
        del root["observations/images/top"]
        length = max(map(len, jpegs))
        padded = root.create_dataset("observations/images/top", (len(jpegs), length), dtype="uint8")
        for i, jpeg in enumerate(jpegs):
            padded[i, : len(jpeg)] = jpeg
        root.create_dataset("compress_len", data=np.array([[len(jpeg) for jpeg in jpegs]], np.float32))


def write_replay_buffer(
    path: Path | zarr.storage.ZipStore,
    *,
    zarr_format: Literal[2, 3] = 2,
    compressors: Any = None,
    **others: np.ndarray,
) -> dict[str, np.ndarray]:
    """Write a replay buffer like that of PushT: two episodes, frames as float32, and further arrays.

    ``others`` are arrays to add or replace; compressors default to Blosc, in format 3 to zarr's default.
    """
    rng = np.random.default_rng(0)
    data = {
        "action": rng.uniform(0, 512, (7, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (7, 96, 96, 3)).astype(np.float32),
        "keypoint": rng.uniform(0, 512, (7, 9, 2)).astype(np.float32),
        "n_contacts": np.zeros((7, 1), np.float32),
        "state": rng.uniform(0, 512, (7, 5)).astype(np.float32),
    }
    data |= others
    blosc = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    compressors = compressors or (blosc if zarr_format == 2 else "auto")
    with zarr.config.set({"array.write_empty_chunks": True}):
        root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        for name, values in data.items():
            chunks = (5, *values.shape[1:])
            root.create_array(f"data/{name}", data=values, chunks=chunks, compressors=compressors)
        root.create_array("meta/episode_ends", data=np.array([4, 7]), compressors=None)
    return data
