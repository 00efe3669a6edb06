"""From camera frames, uint8, to tokens for a transformer, as in ACT (Zhao et al. 2023, arXiv:2304.13705).

Shapes: B batch, C cameras, D width, E channels of a map, H and W height and width (of an image or of a map), L tokens,
N images of all samples and cameras, 2 (y, x), 3 (red, green, blue).
"""

from __future__ import annotations

import math
import pickle
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
"""Makes the normalisation of a map, given its channels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what torchvision's weights were trained on."""

_MAX_WEIGHTS_BYTES = 2**28
"""Of a file of weights; a ResNet-18 with its classifier has a fifth of it."""

_HALF = (0.5, 0.5, 0.5)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by stored statistics and with a stored affine map, none of which is trained.

    Statistics of a few images of one task would be worse than ImageNet's; so in DETR (Carion et al. 2020,
    arXiv:2005.12872) and ACT.
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
        """Scale and shift each channel; the type and memory format of the maps stay as they are."""
        scale_E = self.weight * torch.rsqrt(self.running_var + 1e-5)
        shift_E = self.bias - self.running_mean * scale_E
        # Cast the few numbers and not the map: under autocast, float32 factors would make the whole map float32.
        scale, shift = (rearrange(value.to(maps_NEHW.dtype), "e -> e 1 1") for value in (scale_E, shift_E))
        return torch.addcmul(shift, maps_NEHW, scale)


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a group normalisation of 16 channels a group, for nets trained from scratch.

    So in diffusion policy (Chi et al. 2023, arXiv:2303.04137). It does not depend on the batch: a policy computes the
    same in training and in use.
    """
    return nn.GroupNorm(channels // 16, channels)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution for a normalisation and a ReLU to follow, initialised as torchvision's ResNet is."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, under torchvision's names."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, 3, stride), norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), norm(channels)
        self.downsample = (
            nn.Identity() if stride == 1 else nn.Sequential(_conv(in_channels, channels, 1, stride), norm(channels))
        )

    def forward(self, maps_NEHW: Tensor) -> Tensor:
        update_NEHW = F.relu(self.bn1(self.conv1(maps_NEHW)), inplace=True)
        update_NEHW = self.bn2(self.conv2(update_NEHW))
        return F.relu(update_NEHW + self.downsample(maps_NEHW), inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) up to its last map, under torchvision's names.

    Attributes:
        out_channels: Of the map.
        stride: Pixels of the image a cell of the map, in each direction.
    """

    out_channels = 512
    stride = 32

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, stride=2), norm(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1, norm), BasicBlock(64, 64, 1, norm))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2, norm), BasicBlock(128, 128, 1, norm))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2, norm), BasicBlock(256, 256, 1, norm))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2, norm), BasicBlock(512, 512, 1, norm))

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Return the map (N, 512, H / 32, W / 32), sizes rounded up, of normalised images."""
        maps_NEHW = F.relu(self.bn1(self.conv1(images_N3HW)), inplace=True)
        maps_NEHW = F.max_pool2d(maps_NEHW, kernel_size=3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps_NEHW = layer(maps_NEHW)
        return maps_NEHW


class SmallConvNet(nn.Sequential):
    """Four convolutions, for images of 64 pixels on two processors: a map of 4 x 4.

    A finer map would cost more steps than it is worth where the convolutions are all that takes time.

    Attributes:
        out_channels: Of the map.
        stride: Pixels of the image a cell of the map, in each direction.
    """

    out_channels = 128
    stride = 16

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        in_channels = 3
        for channels, kernel, stride in ((32, 7, 4), (64, 3, 2), (128, 3, 2), (self.out_channels, 3, 1)):
            layers += [_conv(in_channels, channels, kernel, stride), group_norm(channels), nn.ReLU(inplace=True)]
            in_channels = channels
        super().__init__(*layers)


def load_backbone(net: ResNet18, path: Path) -> None:
    """Load weights of torchvision's resnet18 into a net with :class:`FrozenBatchNorm2d`.

    Args:
        net: What they are loaded into, in place.
        path: A state_dict: ``.pth`` or ``.pt`` (``torch.save``), or ``.safetensors``. The classifier (``fc``) and
            ``num_batches_tracked`` are left out.

    Raises:
        CheckpointError: It is missing or damaged, holds other things than tensors, or does not fit to the last name
            and shape. The net is then unchanged.
    """
    tensors = {
        name: tensor
        for name, tensor in _read_tensors(path).items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    wrong = state_dict_mismatch(net.state_dict(), tensors)
    if wrong:
        raise CheckpointError(
            f"The weights {path} do not fit: {wrong} Expected are torchvision's resnet18 names and shapes."
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(f"The weights {path} are damaged: some are not finite.")
    net.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    expected = "Expected is a state_dict of torchvision's resnet18: .pth, .pt or .safetensors."
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"The weights {path} are of no known kind. {expected}")
    try:
        if require_regular(path).st_size > _MAX_WEIGHTS_BYTES:
            raise DamagedFileError(f"{path} has {path.stat().st_size} bytes")
        if path.suffix == ".safetensors":
            return load_tensors(path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text tells how to run the code in the file
        raise CheckpointError(
            f"The weights {path} are damaged, or hold more than tensors, which is not loaded. {expected}"
        ) from error
    except Exception as error:  # a pickle that is cut or garbled raises whatever it runs into
        reason = str(error).removeprefix(f"{path} ").partition("\n")[0].partition(". ")[0].rstrip(".")
        reason = reason or type(error).__name__
        raise CheckpointError(f"The weights {path} are missing or damaged: {reason}. {expected}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        found = sorted(map(str, loaded))[:3] if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"The weights {path} hold {found}, and not tensors by name. {expected}")
    return {str(name): tensor for name, tensor in loaded.items()}


def sine_positions_2d(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Return fixed positions (height * width, channels) of a map's cells, row by row, float32.

    The first half of the channels tells y, the second x: sines and cosines in turn, of 2 pi (i + 1) / size divided by
    10000 ** (4 k / channels), k = 0, 1, … (Carion et al. 2020, arXiv:2005.12872; ``PositionEmbeddingSine`` of its code
    with ``normalize=True``, which ACT uses). ``channels`` is a multiple of 4.
    """
    assert channels % 4 == 0, f"positions need a multiple of 4 channels, not {channels}"
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
        images_BCHW3: Images of any type, uint8 as they are stored.
        pad_px: P: by how many pixels the edge is repeated on each side.
        offsets_BC2: Where in the padded image the crop begins, (y, x), int64, each in [0, 2 P]; P leaves an image as
            it is.

    Returns:
        Images of the same shape and type, on their device.
    """
    samples, cameras, height, width, _ = images_BCHW3.shape
    device = images_BCHW3.device
    y_BCH = (torch.arange(height, device=device) + offsets_BC2[..., :1] - pad_px).clamp(0, height - 1)
    x_BCW = (torch.arange(width, device=device) + offsets_BC2[..., 1:] - pad_px).clamp(0, width - 1)
    sample_B111 = torch.arange(samples, device=device)[:, None, None, None]
    camera_C11 = torch.arange(cameras, device=device)[:, None, None]
    return images_BCHW3[sample_B111, camera_C11, y_BCH[..., :, None], x_BCW[..., None, :]]


class ImageEncoder(nn.Module):
    """Turns the frames of all cameras into tokens: one net for all of them, and an embedding to tell them apart.

    Frames come in as uint8 and are normalised here, so that they cannot be normalised in training and raw in use.

    Args:
        backbone: ``resnet18`` or ``small``.
        width: D: of a token.
        num_cameras: C.
        backbone_weights: Whose weights the ResNet gets, empty for none. With them it has frozen batch normalisation
            and takes ImageNet's scale of colours, otherwise group normalisation and [-1, 1]. They are not read here but
            by :func:`load_backbone`, before training: a checkpoint brings its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, backbone: str, width: int, num_cameras: int, backbone_weights: str) -> None:
        super().__init__()
        self.net: ResNet18 | SmallConvNet
        if backbone == "small":
            self.net = SmallConvNet()
        else:
            self.net = ResNet18(FrozenBatchNorm2d if backbone_weights else group_norm)
        self.project = nn.Conv2d(self.net.out_channels, width, kernel_size=1)
        self.camera_embedding = nn.Parameter(torch.randn(num_cameras, width) * 0.02)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if backbone_weights else (_HALF, _HALF)
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images_BCHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, L, D) and their positions (L, D), to be added to queries and keys.

        Images are uint8. L = C * H * W of the maps: camera by camera, row by row.
        """
        assert images_BCHW3.dtype == torch.uint8, f"images are uint8 and normalised here, not {images_BCHW3.dtype}"
        assert images_BCHW3.shape[1] == len(self.camera_embedding), f"another number of cameras: {images_BCHW3.shape}"
        # Colours stay innermost in memory: for a convolution this is channels_last, and no copy.
        images_N3HW = rearrange((images_BCHW3 - self.mean) / self.std, "b c h w rgb -> (b c) rgb h w")
        maps_NDHW: Tensor = self.project(self.net(images_N3HW))
        tokens_BLD = rearrange(maps_NDHW, "(b c) d h w -> b (c h w) d", b=len(images_BCHW3))
        width, map_height, map_width = maps_NDHW.shape[1:]
        cells_LD = sine_positions_2d(map_height, map_width, width, maps_NDHW.device)
        positions_CLD = rearrange(self.camera_embedding, "c d -> c 1 d") + cells_LD
        return tokens_BLD, rearrange(positions_CLD, "c l d -> (c l) d")
