"""Keypoints and the positions that are estimated from them: where things are, for every head, in training only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import act_kit
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.overrides import compose
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, make_model
from act_kit.policies.keypoints import KeypointEncoder
from tests.conftest import TINY

OPTIONS = ("policy.inputs=image+proprio", "policy.cameras=[corner4]", "policy.backbone=keypoints")


def make(*overrides: str) -> ChunkModel:
    torch.manual_seed(0)
    return make_model(compose(TrainConfig, [*overrides, *OPTIONS]).policy, num_tasks=1)


def make_batch(states_BS: Tensor) -> ChunkBatch:
    num = len(states_BS)
    images = torch.randint(0, 256, (num, 1, 32, 32, 3), dtype=torch.uint8)
    tasks = torch.zeros(num, dtype=torch.int64)
    observation = Observation(states_BS=states_BS, raw_states_BS=states_BS, tasks_B=tasks, images_BCHW3=images)
    actions, is_pad = torch.rand(num, 16, 4), torch.zeros(num, 16, dtype=torch.bool)
    valid = torch.tensor(16 * num)
    return ChunkBatch(observation=observation, actions_BKA=actions, is_pad_BK=is_pad, num_valid=valid, batch_size=num)


def test_keypoints_move_with_the_image() -> None:
    """A keypoint marks the thing, and moves with it by one cell of the map per four pixels, or marks a fixed place."""
    torch.manual_seed(0)
    encoder = KeypointEncoder(1, 8)
    with torch.no_grad():
        encoder.log_temperature.fill_(6.0)
    images = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    images[0, 0, 24:32, 24:32] = 255
    images[1, 0, 28:36, 32:40] = 255
    points = encoder(images).reshape(2, 8, 2)
    moved = points[1] - points[0]
    cell = 2 / 15
    follows = (moved - torch.tensor([cell, 2 * cell])).abs().amax(dim=1) < 0.02
    stays = moved.abs().amax(dim=1) < 0.02
    assert follows.any()
    assert (follows | stays).all()
    assert points.abs().max() <= 1


@pytest.mark.parametrize("head", ["act_small", "flow_small", "mip_small"])
def test_every_head_learns_the_positions(head: str) -> None:
    batch = make_batch(torch.rand(6, 39))
    model = make(f"policy={head}", "policy.num_keypoints=8")
    without = make(f"policy={head}", "policy.position_weight=0")
    model.compute_loss(batch)["loss"].backward()
    assert model.position_out is not None
    assert isinstance(model.keypoints, KeypointEncoder)
    assert model.keypoints.dim == 2 * 8
    learned = dict(model.named_parameters())
    for name in ("keypoints.net.0.weight", "position_out.2.bias"):
        gradient = learned[name].grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
    assert without.position_out is None


@pytest.mark.gl
def test_a_checkpoint_holds_keypoints_and_estimates(images_store: EpisodeStore, tmp_path: Path) -> None:
    """Trained as a user would, and loaded with its self-test."""
    overrides = [*TINY, *OPTIONS, "selection.num_evaluations=0"]
    policy = act_kit.train(images_store.path, tmp_path / "run", workers=1, overrides=overrides)
    assert policy.model.position_out is not None
    assert act_kit.Policy.load(tmp_path / "run").weights_hash == policy.weights_hash
