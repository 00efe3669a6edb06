"""Image encoder: the ResNet matches torchvision's, weights match or are refused, pixels map to the right tokens."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from act_kit.errors import CheckpointError
from act_kit.policies.vision import (
    FrozenBatchNorm2d,
    ImageEncoder,
    ResNet18,
    group_norm,
    load_backbone,
    random_shift,
    sine_positions_2d,
    small_conv_net,
)

TORCHVISION_DIGEST = "5191d63ec398959223d67ef37376f9061e6965b859fc2d4e40e23d037147a0d7"
"""SHA-256 of the sorted lines ``name shape`` of torchvision 0.29.1's ``resnet18().state_dict()``."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def torchvision_shapes() -> dict[str, tuple[int, ...]]:
    """Return the 122 names and shapes of torchvision's resnet18, derived from the architecture."""
    convs = {"conv1": (64, 3, 7, 7)}
    norms = {"bn1": 64}
    for layer, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{layer}.{block}"
            first = layer > 1 and block == 0
            convs[f"{name}.conv1"] = (channels, channels // 2 if first else channels, 3, 3)
            convs[f"{name}.conv2"] = (channels, channels, 3, 3)
            norms |= {f"{name}.bn1": channels, f"{name}.bn2": channels}
            if first:
                convs[f"{name}.downsample.0"] = (channels, channels // 2, 1, 1)
                norms[f"{name}.downsample.1"] = channels
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in convs.items()}
    for name, channels in norms.items():
        shapes |= {f"{name}.{key}": (channels,) for key in STATISTICS}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights for torchvision's resnet18 that are the same on every machine, float64."""
    weights: dict[str, Tensor] = {}
    for index, (name, shape) in enumerate(sorted(torchvision_shapes().items())):
        wave = torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + index).reshape(shape)
        if len(shape) == 4:
            weights[name] = wave * (4 / math.prod(shape[1:])) ** 0.5
        elif name.endswith(("bn1.weight", "bn2.weight", "downsample.1.weight", "running_var")):
            weights[name] = 1 + 0.5 * wave
        else:
            weights[name] = 0.1 * wave
    return weights


def make_images(samples: int, cameras: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (samples, cameras, height, width, 3), dtype=torch.uint8, generator=generator)


def encoder(backbone: str = "small", backbone_weights: str = "", cameras: int = 2) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(backbone=backbone, width=32, num_cameras=cameras, backbone_weights=backbone_weights)


# -- nets --------------------------------------------------------------------------------------------------------------


def test_names_and_shapes_match_torchvision() -> None:
    shapes = torchvision_shapes()
    lines = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == TORCHVISION_DIGEST
    assert len(shapes) == 122
    net = ResNet18(FrozenBatchNorm2d)
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert own == {
        name: shape
        for name, shape in shapes.items()
        if name not in ("fc.weight", "fc.bias") and not name.endswith("num_batches_tracked")
    }
    affine = [tensor for name, tensor in net.state_dict().items() if not name.endswith(("running_mean", "running_var"))]
    assert sum(tensor.numel() for tensor in affine) == 11_176_512
    assert sum(parameter.numel() for parameter in ResNet18(group_norm).parameters()) == 11_176_512


def test_the_map_matches_torchvision(weights: dict[str, Tensor]) -> None:
    """The expected numbers were computed by torchvision 0.29.1 up to layer4, from the same weights and image."""
    net = ResNet18(FrozenBatchNorm2d).double()
    image = torch.sin(0.37 * torch.arange(2 * 3 * 70 * 50, dtype=torch.float64)).reshape(2, 3, 70, 50)
    before = net(image)
    net.load_state_dict({name: weights[name] for name in net.state_dict()})
    after = net(image)
    assert not torch.allclose(before, after)
    assert after.shape == (2, 512, 3, 2)
    assert after[1, :2, 1, 1].tolist() == pytest.approx([35.21771783605894, 14.655390352343554], rel=1e-6)
    assert after[0, :4, 2, 0].tolist() == pytest.approx([22.378424164, 10.479402493, 0.0, 0.023647684], rel=1e-6)
    assert after.mean().item() == pytest.approx(9.927814607939771, rel=1e-6)


def test_a_net_has_its_declared_channels_and_stride() -> None:
    image = torch.zeros(1, 3, 64, 96)
    assert ResNet18(group_norm)(image).shape == (1, 512, 2, 3)
    assert small_conv_net()(image).shape == (1, 128, 4, 6)


def test_frozen_batch_norm_is_batch_norm_at_inference() -> None:
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(16).eval()
    for name in STATISTICS:
        nn.init.uniform_(getattr(reference, name), 0.5, 2.0)
    frozen = FrozenBatchNorm2d(16)
    frozen.load_state_dict({name: getattr(reference, name) for name in STATISTICS})
    maps = torch.randn(2, 16, 5, 7).to(memory_format=torch.channels_last)
    assert torch.allclose(frozen(maps), reference(maps), atol=1e-6)
    assert not list(frozen.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        low = frozen(maps.bfloat16())
    assert low.dtype == torch.bfloat16
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(low.float(), reference(maps), rtol=0.05, atol=0.05)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "legacy.pt", "w.safetensors"])
def test_weights_load_from_every_file_type(tmp_path: Path, weights: dict[str, Tensor], name: str) -> None:
    net = ResNet18(FrozenBatchNorm2d)
    stored = {key: tensor.half() for key, tensor in weights.items()}
    if name == "w.safetensors":
        safetensors.torch.save_file(stored, tmp_path / name)
    else:
        torch.save(stored, tmp_path / name, _use_new_zipfile_serialization=name == "w.pth")
    load_backbone(net, tmp_path / name)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, stored[key].float()), key


def test_mismatched_weights_are_refused_and_change_nothing(tmp_path: Path) -> None:
    net, path = ResNet18(FrozenBatchNorm2d), tmp_path / "weights.pth"
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fitting = {name: torch.zeros(()).expand(shape) for name, shape in torchvision_shapes().items()}
    missing = {name: tensor for name, tensor in fitting.items() if name != "layer3.0.downsample.1.running_var"}
    torch.save(missing, path)
    with pytest.raises(CheckpointError, match=r"99 of 100.*Missing: \['layer3\.0\.downsample\.1\.running_var'\]"):
        load_backbone(net, path)
    changed = {"conv1.weight": torch.zeros(64, 1, 7, 7), "layer5.0.conv1.weight": torch.zeros(1)}
    torch.save(fitting | changed, path)
    with pytest.raises(CheckpointError, match=r"unknown: \['layer5\.0\.conv1\.weight'\].*shape: \['conv1\.weight'\]"):
        load_backbone(net, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    torch.save(fitting, path)
    load_backbone(net, path)
    assert not any(tensor.any() for tensor in net.state_dict().values())


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code in a pickle was run",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_not_weights_are_refused_in_one_line(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net, good = ResNet18(FrozenBatchNorm2d), tmp_path / f"good{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, good)
    whole = good.read_bytes()
    wrong = {"empty": b"", "cut": whole[:-1000], "cut_early": whole[:10], "text": b"<html>404 Not Found</html>"}
    for name, content in wrong.items():
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    torch.save({"conv1.weight": Code()}, tmp_path / "code.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "nested.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "weights.h5").write_bytes(whole)
    bad = [tmp_path / f"{name}{suffix}" for name in (*wrong, "missing", "folder")]
    for path in [*bad, *(tmp_path / name for name in ("code.pth", "nested.pth", "list.pth", "weights.h5"))]:
        with pytest.raises(CheckpointError) as raised:
            load_backbone(net, path)
        message = str(raised.value)
        assert str(path) in message
        assert "torchvision's resnet18" in message
        assert "\n" not in message
        assert len(message) < 400, message
    assert capsys.readouterr().out == ""


# -- positions and shifts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 16), (1, 1, 4), (8, 8, 64)])
def test_positions_match_detr(height: int, width: int, channels: int) -> None:
    half = channels // 2
    positions = sine_positions_2d(height, width, channels)
    assert positions.shape == (height * width, channels)
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                place, size = (y, height) if channel < half else (x, width)
                feature = channel % half
                angle = (place + 1) / size * 2 * math.pi / 10000 ** (2 * (feature // 2) / half)
                wave = math.cos(angle) if feature % 2 else math.sin(angle)
                assert math.isclose(float(positions[y * width + x, channel]), wave, abs_tol=2e-6)


def test_every_image_is_shifted_by_its_own_offset() -> None:
    pad, height, width = 3, 7, 10
    images = make_images(7, 2, height, width)
    every = torch.tensor([(y, x) for y in range(2 * pad + 1) for x in (0, 2 * pad)])
    offsets = every.reshape(7, 2, 2)
    shifted = random_shift(images, pad, offsets)
    assert shifted.dtype == torch.uint8
    for sample in range(7):
        for camera in range(2):
            y, x = offsets[sample, camera].tolist()
            padded = np.pad(images[sample, camera].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
            assert np.array_equal(shifted[sample, camera].numpy(), padded[y : y + height, x : x + width])
    assert torch.equal(random_shift(images, pad, torch.full_like(offsets, pad)), images)


# -- encoder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "weights", "cells"), [("small", "", 4 * 6), ("resnet18", "", 2 * 3), ("resnet18", "w.pth", 2 * 3)]
)
def test_images_become_tokens(backbone: str, weights: str, cells: int) -> None:
    encode, images = encoder(backbone, weights), make_images(3, 2, 64, 96)
    net_inputs: list[Tensor] = []
    encode.net.register_forward_pre_hook(lambda _, inputs: net_inputs.append(inputs[0]))
    tokens, positions = encode(images)
    assert tokens.shape == (3, 2 * cells, 32)
    assert positions.shape == (2 * cells, 32)
    colors = images.flatten(0, 1).permute(0, 3, 1, 2) / 255
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if weights else ((0.5,) * 3, (0.5,) * 3)
    expected = (colors - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(net_inputs[0], expected, atol=1e-5)
    assert net_inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert isinstance(encode.net, ResNet18) == (backbone == "resnet18")
    assert any(isinstance(module, FrozenBatchNorm2d) for module in encode.net.modules()) == bool(weights)
    (tokens.square().sum() + positions.square().sum()).backward()
    for name, parameter in encode.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_tokens_are_in_the_order_of_the_map() -> None:
    """A change in one corner of one camera's image of one sample changes only the tokens around it."""
    encode, images = encoder(), make_images(2, 2, 64, 64)
    assert isinstance(encode.net, nn.Sequential)
    for index, module in enumerate(encode.net):
        if isinstance(module, nn.GroupNorm):  # it depends on the whole image
            encode.net[index] = nn.Identity()
    changed = images.clone()
    changed[1, 1, -1, 0] = 255 - changed[1, 1, -1, 0]
    moved = (encode(images)[0] != encode(changed)[0]).any(dim=2).reshape(2, 2, 4, 4)
    assert moved[1, 1, 3, 0]
    assert not moved[0].any()
    assert not moved[1, 0].any()
    assert not moved[1, 1, :1].any()
    assert not moved[1, 1, :, 3:].any()


def test_cameras_share_the_net_and_have_their_own_embedding() -> None:
    encode, images = encoder(), make_images(2, 2, 64, 64)
    tokens, positions = encode(images)
    swapped, same_positions = encode(images.flip(1))
    first, second = tokens.chunk(2, dim=1)
    assert torch.allclose(swapped, torch.cat([second, first], dim=1), atol=1e-5)
    assert torch.equal(positions, same_positions)
    first, second = positions.chunk(2)
    embedding = encode.camera_embedding
    assert torch.allclose(first - second, (embedding[0] - embedding[1]).expand(16, -1), atol=1e-6)
    # A sum over tokens, like attention, does not depend on their order.
    assert not torch.allclose((tokens * positions).sum(1), (swapped * positions).sum(1), atol=1e-3)


def test_only_uint8_images_of_all_cameras_are_accepted() -> None:
    encode, images = encoder(), make_images(2, 2, 64, 64)
    with pytest.raises(AssertionError, match="uint8"):
        encode(images / 255)
    with pytest.raises(AssertionError, match="cameras"):
        encode(images[:, :1])
