"""Keypoints: where objects and goal are in the images and in the scene, for every head; learned in training only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import act_kit
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError
from act_kit.metrics import series
from act_kit.overrides import compose
from act_kit.policies.chunk_model import ChunkBatch, Observation, make_model
from act_kit.policies.chunk_transformer import ChunkTransformer
from act_kit.policies.keypoints import NUM_THINGS, KeypointEncoder, Places, place_loss
from act_kit.sim.cameras import camera_matrices
from act_kit.sim.render import CameraViews, RenderSettings
from tests.conftest import TINY

OPTIONS = (
    *("policy.inputs=image+proprio", "policy.cameras=[corner4]", "policy.backbone=keypoints"),
    "trainer.shift_px=0",
)


def matrices(*cameras: str) -> Tensor:
    return torch.from_numpy(camera_matrices(CameraViews(cameras=cameras, settings=RenderSettings()))).float()


def make(*overrides: str) -> ChunkTransformer:
    torch.manual_seed(0)
    model = make_model(compose(TrainConfig, [*overrides, *OPTIONS]).policy, num_tasks=1)
    assert isinstance(model, ChunkTransformer)
    return model


def make_batch(num: int) -> ChunkBatch:
    states = torch.rand(num, 39)
    states[:, [4, 11, 36]] -= 0.5
    images = torch.randint(0, 256, (num, 1, 32, 32, 3), dtype=torch.uint8)
    tasks = torch.zeros(num, dtype=torch.int64)
    return ChunkBatch(
        observation=Observation(states_BS=states, raw_states_BS=states, tasks_B=tasks, images_BCHW3=images),
        actions_BKA=torch.rand(num, 16, 4),
        is_pad_BK=torch.zeros(num, 16, dtype=torch.bool),
        num_valid=torch.tensor(16 * num),
        batch_size=num,
        cameras_C34=matrices("corner4"),
    )


def test_the_loss_is_least_where_things_are() -> None:
    """The mean of the best map is the place; what is outside the image has no loss."""
    cameras = matrices("corner2", "topview")
    positions = torch.tensor([[[0.0, 0.6, 0.02], [0.1, 0.7, 0.1], [0.0, 50.0, 0.0]]])
    maps = torch.zeros(1, 2, NUM_THINGS, 32, 32, requires_grad=True)
    optimizer = torch.optim.Adam([maps], lr=1.0)
    for _ in range(300):
        log_maps = maps.flatten(3).log_softmax(3).reshape(maps.shape)
        entropy, error = place_loss(Places(log_maps, maps, positions), positions, cameras)
        optimizer.zero_grad()
        entropy.sum().backward()
        optimizer.step()
    assert error.max() == 0
    grid = (torch.arange(32) + 0.5) / 16 - 1
    probabilities = log_maps.exp()
    found = torch.stack([(probabilities.sum(3) * grid).sum(3), (probabilities.sum(4) * grid).sum(3)], dim=3)
    projected = torch.einsum("crk,bek->bcer", cameras, torch.nn.functional.pad(positions, (0, 1), value=1.0))
    expected = projected[..., :2] / projected[..., 2:]
    assert (found - expected)[:, :, :2].abs().max() < 0.02
    assert maps[:, :, 2].abs().max() == 0, "far outside every image"


@pytest.mark.parametrize("head", ["act_small", "flow_small", "mip_small"])
def test_every_head_learns_places_and_positions(head: str) -> None:
    model, batch = make(f"policy={head}", "policy.position_weight=2"), make_batch(6)
    embedded = model.embed(batch.observation)
    loss = model.position_loss(embedded, batch)
    model.compute_loss(batch)["loss"].backward()
    learned = dict(model.named_parameters())
    for name in ("keypoints.down.0.0.weight", "keypoints.maps.bias", "keypoints.triangulate.4.bias"):
        gradient = learned[name].grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
    model.config = replace(model.config, position_weight=4.0)
    torch.testing.assert_close(model.position_loss(embedded, batch), 2 * loss)


def test_actions_do_not_bend_the_estimates() -> None:
    model, batch = make("policy=act_small"), make_batch(4)
    model.predict(batch.observation).sum().backward()
    assert isinstance(model.keypoints, KeypointEncoder)
    assert all(parameter.grad is None for parameter in model.keypoints.parameters())


@pytest.mark.parametrize("override", ["policy.cameras=[gripperPOV]", "policy.inputs=image+state"])
def test_keypoints_need_fixed_cameras(override: str) -> None:
    with pytest.raises(ConfigError, match="cameras that do not move: topview, corner"):
        compose(TrainConfig, ["policy=act_keypoints", override])


def test_images_of_keypoints_are_not_shifted() -> None:
    with pytest.raises(ConfigError, match=r"with policy.backbone=keypoints: .* Fix: trainer.shift_px=0"):
        compose(TrainConfig, ["policy=act_keypoints", "trainer.shift_px=2"])


@pytest.mark.gl
def test_a_checkpoint_holds_keypoints(images_store: EpisodeStore, tmp_path: Path) -> None:
    """Trained as a user would, and loaded with its self-test."""
    overrides = [*TINY, *OPTIONS, "selection.num_evaluations=0"]
    policy = act_kit.train(images_store.path, tmp_path / "run", workers=1, overrides=overrides)
    assert policy.model.keypoints is not None
    for name in ("val/object_error", "val/goal_error"):
        errors = [error for _, error in series(tmp_path / "run", name)]
        assert errors
        assert all(1 < error < 1000 for error in errors), "millimeters"
    assert act_kit.Policy.load(tmp_path / "run").weights_hash == policy.weights_hash
