"""Images of datasets for training: uncompressed, indexed by step, on the device if they fit there.

Shapes: T steps of all episodes of all datasets, C cameras.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import quoted, require_space
from act_kit.sim.looks import LOOKS
from act_kit.sim.render import CameraViews, check_cameras

_MAX_MEMORY_FRACTION = 0.7
"""Fraction of the device's free memory that images may take; the rest is for the model and its activations."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All images of several datasets.

    Attributes:
        images_TCHW3: uint8, on the device, or memory-mapped from a file on disk.
        views: Cameras and render settings of the images.
        gl_renderer: ``GL_RENDERER`` that rendered the images.
        reason: Where the images are stored, and why.
    """

    images_TCHW3: Tensor
    views: CameraViews
    gl_renderer: str
    reason: str


def load_frames(
    stores: Sequence[EpisodeStore], cameras: tuple[str, ...], *, where: str, device: torch.device, scratch: Path
) -> Frames:
    """Load the images of datasets, one after the other.

    Args:
        stores: The datasets.
        cameras: Cameras to load, in this order.
        where: ``device`` to keep the images on the device, ``disk`` to read them from an unnamed file in the folder
            ``scratch``, or ``auto`` for the device if they fit there.
        device: Training device.
        scratch: Existing folder.

    Raises:
        DatasetError: See :func:`find_images`.
    """
    images = find_images(stores, cameras)
    first, num_steps = images[0][0], sum(store.num_steps for store in stores)
    shape = (num_steps, len(cameras), first.settings.height_px, first.settings.width_px, 3)
    num_bytes = int(np.prod(shape))
    is_cuda = device.type == "cuda"
    free_bytes = torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
    fits = num_bytes <= _MAX_MEMORY_FRACTION * free_bytes
    have = f"{num_bytes / 1e6:.0f} MB of images, {free_bytes / 1e9:.1f} GB free on {device.type}"
    if where == "device" or (where == "auto" and fits):
        frames = torch.empty(shape, dtype=torch.uint8, device=device)
        reason = f"{have}: kept on the device"
    else:
        require_space(scratch, num_bytes, "The uncompressed images")
        with tempfile.TemporaryFile(dir=scratch) as file:  # unnamed: deleted when the process ends
            frames = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=shape))
        reason = f"{have}: read from disk" + (", as configured" if where == "disk" else ", since they do not fit")
    base = 0
    for store, cameras_of_store in zip(stores, images, strict=True):
        for camera, image in enumerate(cameras_of_store):
            for begin, block in image.blocks():
                frames[base + begin : base + begin + len(block), camera] = torch.from_numpy(block)
        base += store.num_steps
    views = CameraViews(cameras=cameras, settings=first.settings)
    return Frames(images_TCHW3=frames, views=views, gl_renderer=first.renderer, reason=reason)


def find_images(stores: Sequence[EpisodeStore], cameras: tuple[str, ...]) -> list[list[ImageStore]]:
    """Return the images of every camera in every dataset.

    Raises:
        RenderError: A camera does not exist.
        DatasetError: Images are missing, or differ in size or renderer between datasets or cameras.
    """
    check_cameras(cameras)
    images: list[list[ImageStore]] = []
    for store in stores:
        _require(store, cameras)
        images.append([ImageStore(store, camera) for camera in cameras])
        first = images[0][0]
        for image in images[-1]:
            if image.rendered != first.rendered:
                both = f"{image.settings} px by '{image.renderer}', others {first.settings} px by '{first.renderer}'"
                fix = f"{_command(store, image.camera)} {first.settings.flags} --overwrite"
                raise DatasetError(f"The frames of {image.camera} in {store.path} are {both}. Fix: {fix}")
    return images


def _require(store: EpisodeStore, cameras: Sequence[str]) -> None:
    """Raise an error with the command that renders the missing cameras, as those that there are."""
    available = ImageStore.cameras(store)
    missing = [camera for camera in cameras if camera not in available]
    if missing:
        has, fix = "it has none", _first_command(store, cameras)
        if available:
            has = f"only of {', '.join(available)}"
            fix = f"{_command(store, *missing)} {ImageStore(store, available[0]).settings.flags}"
        raise DatasetError(
            f"The policy uses {', '.join(cameras)}, but {store.path} has no images of {', '.join(missing)}: {has}. "
            f"Fix: {fix}"
        )


def _first_command(store: EpisodeStore, cameras: Sequence[str]) -> str:
    """Return the command for a dataset without images: with our look that has these cameras, if there is one."""
    for name, look in LOOKS.items():
        if look.cameras == tuple(cameras) and not look.as_metaworld:
            return f"act render {quoted(store.path)} --look {name}"
    return _command(store, *cameras)


def _command(store: EpisodeStore, *cameras: str) -> str:
    return " ".join([f"act render {quoted(store.path)}", *(f"--camera {camera}" for camera in cameras)])
