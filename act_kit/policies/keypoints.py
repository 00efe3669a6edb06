"""Keypoints: where learned patterns are in each image (spatial softmax; Levine et al. 2016, arXiv:1504.00702).

A scene of Meta-World always looks the same but for a few things that move, some of which are four pixels wide. Pooled
or strided maps lose where they are; the mean position under a softmax keeps it to a fraction of a cell.

Shapes: B batch, C cameras, E keypoints of a camera, H and W height and width (of an image or of a map), 3 (red, green,
blue).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

CHANNELS = (32, 48, 48)
"""Channels of the convolutions, the first of which has stride 4: on a CPU they take most of the time of training."""


class KeypointEncoder(nn.Module):
    """Maps the images of all cameras to keypoints, with convolutions that the cameras share and patterns of their own.

    Args:
        num_cameras: C.
        num_keypoints: E.
    """

    def __init__(self, num_cameras: int, num_keypoints: int) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.net = nn.Sequential(
            nn.Conv2d(3, first, 8, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.patterns = nn.Parameter(torch.randn(num_cameras, num_keypoints, third) / third**0.5)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    @property
    def dim(self) -> int:
        """Number of coordinates of the keypoints of a sample."""
        num_cameras, num_keypoints, _ = self.patterns.shape
        return 2 * num_cameras * num_keypoints

    def forward(self, images_BCHW3: Tensor) -> Tensor:
        """Return the coordinates of the keypoints, in [-1, 1], (B, C * E * 2); images are uint8."""
        num_cameras = len(self.patterns)
        assert images_BCHW3.dtype == torch.uint8, f"images of type {images_BCHW3.dtype}: expected uint8"
        assert images_BCHW3.shape[1] == num_cameras, f"images {images_BCHW3.shape}: expected {num_cameras} cameras"
        # The color axis stays innermost in memory: for a convolution this is channels_last, without a copy.
        images_N3HW = rearrange((images_BCHW3 - 127.5) / 127.5, "b c h w rgb -> (b c) rgb h w")
        maps = rearrange(self.net(images_N3HW), "(b c) d h w -> b c d h w", c=num_cameras)
        scores = torch.einsum("bcdhw,ced->bcehw", maps, self.patterns).float()
        height, width = scores.shape[-2:]
        weights = (rearrange(scores, "b c e h w -> b c e (h w)") * self.log_temperature.exp()).softmax(dim=-1)
        weights = rearrange(weights, "b c e (h w) -> b c e h w", h=height)
        y = torch.linspace(-1, 1, height, device=scores.device)
        x = torch.linspace(-1, 1, width, device=scores.device)
        places = torch.stack([(weights.sum(dim=4) * y).sum(dim=3), (weights.sum(dim=3) * x).sum(dim=3)], dim=3)
        return rearrange(places, "b c e two -> b (c e two)")
