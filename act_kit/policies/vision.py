"""Image encoder: turns camera images, uint8, into transformer tokens, as in ACT (Zhao et al. 2023, arXiv:2304.13705).

Shapes: B batch, C cameras, D width, E channels of a map, H and W height and width (of an image or of a map), L tokens,
N images of all samples and cameras, 2 (y, x), 3 (red, green, blue).
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.errors import CheckpointError, DamagedFileError
from act_kit.files import require_regular
from act_kit.policies.weights import load_tensors, state_dict_mismatch

Norm = Callable[[int], nn.Module]
"""Factory of a normalization layer, given its number of channels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in [0, 1] that torchvision's weights were trained with."""

_MAX_WEIGHTS_BYTES = 2**28
"""Largest weights file; a ResNet-18 with its classifier takes a fifth of it."""

_EXPECTED = "Expected: a state_dict of torchvision's resnet18, .pth, .pt or .safetensors."

_HALF = (0.5, 0.5, 0.5)

SMALL_CHANNELS = 128
"""Channels of the map of :func:`small_conv_net`."""


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and a fixed affine map; nothing is trained.

    Statistics of a few images of one task would be worse than ImageNet's. DETR (Carion et al. 2020, arXiv:2005.12872)
    and ACT do the same.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, maps_NEHW: Tensor) -> Tensor:
        """Scale and shift each channel; keep the dtype and memory format of the maps."""
        scale_E = self.weight * torch.rsqrt(self.running_var + 1e-5)
        shift_E = self.bias - self.running_mean * scale_E
        # Cast the factors, not the map: under autocast, float32 factors would make the whole map float32.
        scale, shift = (rearrange(value.to(maps_NEHW.dtype), "e -> e 1 1") for value in (scale_E, shift_E))
        return torch.addcmul(shift, maps_NEHW, scale)


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a group normalization with 16 channels per group, for nets trained from scratch.

    Diffusion Policy does the same (Chi et al. 2023, arXiv:2303.04137). It does not depend on the batch, so training and
    inference compute the same function.
    """
    return nn.GroupNorm(channels // 16, channels)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution to be followed by normalization and ReLU, initialized as in torchvision's ResNet."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, with torchvision's parameter names."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, 3, stride), norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), norm(channels)
        self.downsample = (
            nn.Identity() if stride == 1 else nn.Sequential(_conv(in_channels, channels, 1, stride), norm(channels))
        )

    def forward(self, maps_NEHW: Tensor) -> Tensor:
        """Return feature maps."""
        update_NEHW = F.relu(self.bn1(self.conv1(maps_NEHW)), inplace=True)
        update_NEHW = self.bn2(self.conv2(update_NEHW))
        return F.relu(update_NEHW + self.downsample(maps_NEHW), inplace=True)


class ResNet18(nn.Sequential):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) up to its last feature map, with torchvision's parameter names.

    It maps normalized images (N, 3, H, W) to (N, 512, H / 32, W / 32), sizes rounded up.
    """

    out_channels = 512

    def __init__(self, norm: Norm) -> None:
        layers: dict[str, nn.Module] = {
            "conv1": _conv(3, 64, 7, stride=2),
            "bn1": norm(64),
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        }
        in_channels = 64
        for number, channels in enumerate((64, 128, 256, 512), start=1):
            first = BasicBlock(in_channels, channels, channels // in_channels, norm)
            layers[f"layer{number}"] = nn.Sequential(first, BasicBlock(channels, channels, 1, norm))
            in_channels = channels
        super().__init__(OrderedDict(layers))


def small_conv_net() -> nn.Sequential:
    """Make four convolutions that map images of 64 pixels to 4 x 4 cells, for training on two CPU cores.

    There the convolutions take nearly all the time, and a finer map is not worth the training steps it costs.
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for channels, kernel, stride in ((32, 7, 4), (64, 3, 2), (128, 3, 2), (SMALL_CHANNELS, 3, 1)):
        layers += [_conv(in_channels, channels, kernel, stride), group_norm(channels), nn.ReLU(inplace=True)]
        in_channels = channels
    return nn.Sequential(*layers)


def load_backbone(net: ResNet18, path: Path) -> None:
    """Load weights of torchvision's resnet18 into a net with :class:`FrozenBatchNorm2d`.

    Args:
        net: The net to load into, in place.
        path: A state_dict: ``.pth`` or ``.pt`` (``torch.save``), or ``.safetensors``. The classifier (``fc``) and
            ``num_batches_tracked`` are ignored.

    Raises:
        CheckpointError: The file is missing or damaged, holds anything but tensors, or a name or shape does not match.
            The net is then unchanged.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _read_tensors(path).items():
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked"):
            tensors[name] = tensor
    mismatch = state_dict_mismatch(net.state_dict(), tensors)
    if not mismatch and not all(tensor.isfinite().all() for tensor in tensors.values()):
        mismatch = "they are not finite numbers."
    if mismatch:
        raise CheckpointError(f"The weights {path} do not fit: {mismatch} {_EXPECTED}")
    net.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"The weights {path} have an unknown file type. {_EXPECTED}")
    try:
        if require_regular(path).st_size > _MAX_WEIGHTS_BYTES:
            raise DamagedFileError(f"{path} has {path.stat().st_size} bytes")
        if path.suffix == ".safetensors":
            return load_tensors(path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise TypeError("it does not hold tensors by name")
    except Exception as error:  # a truncated or corrupt pickle can raise any exception
        reason = str(error).removeprefix(f"{path} ").partition("\n")[0].partition(". ")[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError):  # its message explains how to run the code in the file
            reason = "it holds more than tensors, which is not loaded"
        problem = f"are missing or damaged: {reason or type(error).__name__}"
        raise CheckpointError(f"The weights {path} {problem}. {_EXPECTED}") from error
    return {str(name): tensor for name, tensor in loaded.items()}


def sine_positions_2d(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Return fixed positions (height * width, channels) of a map's cells, row by row, float32.

    The first half of the channels encodes y, the second x, as alternating sines and cosines of 2 pi (i + 1) / size
    divided by 10000 ** (4 k / channels), k = 0, 1, … (Carion et al. 2020, arXiv:2005.12872; ``PositionEmbeddingSine``
    of its code with ``normalize=True``, which ACT uses). ``channels`` is a multiple of 4.
    """
    assert channels % 4 == 0, f"{channels} channels: expected a multiple of 4"
    pairs = channels // 4
    rate_K = 10000.0 ** (-torch.arange(pairs, device=device) / pairs)

    def waves(size: int) -> Tensor:
        angle_SK = torch.arange(1, size + 1, device=device)[:, None] * (2 * math.pi / size) * rate_K
        return rearrange([angle_SK.sin(), angle_SK.cos()], "two s k -> s (k two)")

    y_HWE = repeat(waves(height), "h e -> h w e", w=width)
    x_HWE = repeat(waves(width), "w e -> h w e", h=height)
    return rearrange(torch.cat([y_HWE, x_HWE], dim=2), "h w d -> (h w) d")


def random_shift(images_BCHW3: Tensor, pad_px: int, offsets_BC2: Tensor) -> Tensor:
    """Shift every image by its own offset, repeating its edge (Kostrikov et al. 2021, arXiv:2004.13649).

    Args:
        images_BCHW3: Images of any dtype; stored images are uint8.
        pad_px: P, number of pixels by which the edge is repeated on each side.
        offsets_BC2: Origin of the crop in the padded image, (y, x), int64, each in [0, 2 P]; P leaves an image
            unchanged.

    Returns:
        Images of the same shape and dtype, on the same device.
    """
    samples, cameras, height, width, _ = images_BCHW3.shape
    device = images_BCHW3.device
    y_BCH = (torch.arange(height, device=device) + offsets_BC2[..., :1] - pad_px).clamp(0, height - 1)
    x_BCW = (torch.arange(width, device=device) + offsets_BC2[..., 1:] - pad_px).clamp(0, width - 1)
    sample_B111 = torch.arange(samples, device=device)[:, None, None, None]
    camera_C11 = torch.arange(cameras, device=device)[:, None, None]
    return images_BCHW3[sample_B111, camera_C11, y_BCH[..., :, None], x_BCW[..., None, :]]


class ImageEncoder(nn.Module):
    """Encode the images of all cameras as tokens, with one shared net and an embedding per camera.

    Images are uint8 and normalized here, which rules out a training/inference mismatch in their normalization.

    Args:
        backbone: ``resnet18`` or ``small``.
        width: D, width of a token.
        num_cameras: C.
        backbone_weights: File with weights of the ResNet, empty for none. With weights, it has frozen batch
            normalization and ImageNet's color scale, otherwise group normalization and [-1, 1]. The file is not read
            here but by :func:`load_backbone`, before training; a checkpoint contains its own weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, backbone: str, width: int, num_cameras: int, backbone_weights: str) -> None:
        super().__init__()
        self.net: nn.Module
        if backbone == "small":
            self.net, channels = small_conv_net(), SMALL_CHANNELS
        else:
            self.net, channels = ResNet18(FrozenBatchNorm2d if backbone_weights else group_norm), ResNet18.out_channels
        self.project = nn.Conv2d(channels, width, kernel_size=1)
        self.camera_embedding = nn.Parameter(torch.randn(num_cameras, width) * 0.02)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if backbone_weights else (_HALF, _HALF)
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images_BCHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, L, D) and their positions (L, D), to be added to queries and keys.

        Images are uint8. L = C * H * W of the maps, ordered by camera and then by row.
        """
        num_cameras = len(self.camera_embedding)
        assert images_BCHW3.dtype == torch.uint8, f"images of type {images_BCHW3.dtype}: expected uint8"
        assert images_BCHW3.shape[1] == num_cameras, f"images {images_BCHW3.shape}: expected {num_cameras} cameras"
        # The color axis stays innermost in memory: for a convolution this is channels_last, without a copy.
        images_N3HW = rearrange((images_BCHW3 - self.mean) / self.std, "b c h w rgb -> (b c) rgb h w")
        maps_NDHW: Tensor = self.project(self.net(images_N3HW))
        tokens_BLD = rearrange(maps_NDHW, "(b c) d h w -> b (c h w) d", b=len(images_BCHW3))
        width, map_height, map_width = maps_NDHW.shape[1:]
        cells_LD = sine_positions_2d(map_height, map_width, width, maps_NDHW.device)
        positions_CLD = rearrange(self.camera_embedding, "c d -> c 1 d") + cells_LD
        return tokens_BLD, rearrange(positions_CLD, "c l d -> (c l) d")
