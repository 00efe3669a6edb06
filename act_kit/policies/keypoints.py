"""Keypoints: where both objects and the goal are in each image, and from all images in the scene.

A scene of Meta-World always looks the same but for a few things that move, some of which are two pixels wide. A network
from coarse to fine gives, for each thing and camera, the logarithm of the probability that it is in a cell of two
pixels; the mean place keeps where it is to a fraction of a cell. In training the simulator knows the places: the loss
is the cross-entropy of the cells. (Learned from the actions or from the positions alone, keypoints stay at the mean of
the demonstrations: a softmax over a thousand cells that begins flat has hardly a gradient.)

Shapes: B batch, C cameras, E things, H and W height and width (of an image or of a map), 3 (red, green, blue), 2 (x to
the right, y down, in [-1, 1] inside the image).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NUM_THINGS = 3
"""Both objects and the goal."""

_CHANNELS = (24, 32, 48, 64)
"""Channels of the maps at a half, a quarter, an eighth and a sixteenth of the size of the image."""

_POSITION_WIDTH = 128
"""Width of the layers from places to positions."""

_SCALE_M, _CENTER_M, _FINE_M = 0.1, (0.0, 0.65, 0.1), 0.01
"""Unit of the positions, their middle, and the error up to which the loss is quadratic."""


class Places(NamedTuple):
    """Where things are.

    Attributes:
        log_maps_BCEHW: Logarithms of the probabilities of the cells.
        places_BCE2: Mean places.
        positions_BE3: Positions in the scene, meters.
    """

    log_maps_BCEHW: Tensor
    places_BCE2: Tensor
    positions_BE3: Tensor


class KeypointEncoder(nn.Module):
    """Finds things in the images of C cameras, with convolutions that the cameras share, and triangulates them.

    Args:
        num_cameras: C.
        context_dim: Width of what is known besides the images: the task.
    """

    def __init__(self, num_cameras: int, context_dim: int = 0) -> None:
        super().__init__()
        self.num_cameras = num_cameras
        half, quarter, eighth, sixteenth = _CHANNELS
        self.down = nn.ModuleList(
            [_down(3, half), _down(half, quarter, 1), _down(quarter, eighth, 1), _down(eighth, sixteenth, 1)]
        )
        self.up = nn.ModuleList(
            [
                nn.Conv2d(sixteenth, eighth, 1),
                nn.Sequential(*_conv(eighth), nn.Conv2d(eighth, quarter, 1)),
                nn.Sequential(*_conv(quarter), nn.Conv2d(quarter, half, 1)),
            ]
        )
        self.maps = nn.Conv2d(half, num_cameras * NUM_THINGS, 3, padding=1)
        places_dim = 2 * num_cameras * NUM_THINGS
        self.triangulate = nn.Sequential(
            nn.Linear(places_dim + context_dim, _POSITION_WIDTH),
            nn.ReLU(),
            nn.Linear(_POSITION_WIDTH, _POSITION_WIDTH),
            nn.ReLU(),
            nn.Linear(_POSITION_WIDTH, 3 * NUM_THINGS),
        )

    def forward(self, images_BCHW3: Tensor, context_BV: Tensor | None = None) -> Places:
        """Return where things are in images, uint8."""
        num_cameras = self.num_cameras
        assert images_BCHW3.dtype == torch.uint8, f"images of type {images_BCHW3.dtype}: expected uint8"
        assert images_BCHW3.shape[1] == num_cameras, f"images {images_BCHW3.shape}: expected {num_cameras} cameras"
        # The color axis stays innermost in memory: for a convolution this is channels_last, without a copy.
        x = rearrange((images_BCHW3 - 127.5) / 127.5, "b c h w rgb -> (b c) rgb h w")
        finer: list[Tensor] = []
        for layers in self.down:
            x = layers(x)
            finer.append(x)
        x = finer.pop()
        for layers in self.up:
            skip = finer.pop()
            x = F.relu(skip + F.interpolate(layers(x), size=skip.shape[-2:]))
        scores = rearrange(self.maps(x), "(b c) (k e) h w -> b c k e h w", c=num_cameras, k=num_cameras).float()
        own = torch.stack([scores[:, camera, camera] for camera in range(num_cameras)], dim=1)
        height, width = own.shape[-2:]
        log_maps_BCEHW = own.flatten(3).log_softmax(dim=3).reshape(own.shape)
        maps_BCEHW = log_maps_BCEHW.exp()
        y, x_axis = _centers(height, own.device), _centers(width, own.device)
        places_BCE2 = torch.stack(
            [(maps_BCEHW.sum(dim=3) * x_axis).sum(dim=3), (maps_BCEHW.sum(dim=4) * y).sum(dim=3)], dim=3
        )
        known = [places_BCE2.flatten(1)] if context_BV is None else [places_BCE2.flatten(1), context_BV]
        offsets = self.triangulate(torch.cat(known, dim=1)).float().unflatten(1, (NUM_THINGS, 3))
        positions_BE3 = torch.tensor(_CENTER_M, device=offsets.device) + _SCALE_M * offsets
        return Places(log_maps_BCEHW, places_BCE2, positions_BE3)


def place_loss(places: Places, positions_BE3: Tensor, cameras_C34: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the places, nats, and the error of the positions, each (B,).

    Args:
        places: What the encoder says.
        positions_BE3: Where the things are, meters.
        cameras_C34: Camera matrices; see :func:`act_kit.sim.cameras.camera_matrices`. A thing that is outside the image
            of a camera has no place in it.
    """
    homogeneous = F.pad(positions_BE3, (0, 1), value=1.0)
    projected = torch.einsum("crk,bek->bcer", cameras_C34, homogeneous)
    true_BCE2 = projected[..., :2] / projected[..., 2:]
    is_inside_BCE = (projected[..., 2] > 0) & (true_BCE2.abs() < 1).all(dim=-1)
    height, width = places.log_maps_BCEHW.shape[-2:]
    cross_entropy = torch.zeros_like(is_inside_BCE, dtype=torch.float32)
    # The weights of the four cells around a place, whose mean is the place.
    column, row = (_between(true_BCE2[..., axis], size) for axis, size in ((0, width), (1, height)))
    log_maps = places.log_maps_BCEHW.flatten(3)
    for rows, row_weights in row:
        for columns, column_weights in column:
            cells = (rows * width + columns)[..., None]
            cross_entropy = cross_entropy - row_weights * column_weights * log_maps.gather(3, cells)[..., 0]
    entropy_B = torch.where(is_inside_BCE, cross_entropy, 0.0).mean(dim=(1, 2))
    error_BE3 = F.smooth_l1_loss(places.positions_BE3, positions_BE3, beta=_FINE_M, reduction="none") / _SCALE_M
    return entropy_B, error_BE3.mean(dim=(1, 2))


def _between(coordinates: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells next to each coordinate, and their weights."""
    cells = ((coordinates + 1) / 2 * size - 0.5).nan_to_num().clamp(0, size - 1)
    first = cells.floor().clamp(max=size - 2)
    return [(first.long(), 1 - (cells - first)), (first.long() + 1, cells - first)]


def _centers(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) / size * 2 - 1


def _conv(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]


def _down(channels: int, out: int, num_more: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    for _ in range(num_more):
        layers += _conv(out)
    return nn.Sequential(*layers)
