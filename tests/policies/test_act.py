"""ACT model: inputs of its parts, losses, and gradients of every layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from act_kit.config.policy import ACTConfig
from act_kit.config.training import TrainConfig
from act_kit.overrides import compose
from act_kit.policies.chunk_model import ChunkBatch, Observation
from act_kit.policies.heads.act import ACT, kl_divergence
from act_kit.policies.state_features import RELATIVE_DIM, positions, relative_positions, velocities
from tests.conftest import tiny_config


def small(**changes: object) -> ACTConfig:
    config = tiny_config(*(f"policy.{key}={value}" for key, value in changes.items())).policy
    assert isinstance(config, ACTConfig)
    return config


def model(config: ACTConfig, num_tasks: int = 1) -> ACT:
    torch.manual_seed(0)
    return ACT(config, num_tasks=num_tasks).eval()


def observe(states: torch.Tensor, task: int = 0, images: torch.Tensor | None = None) -> Observation:
    tasks = torch.full((len(states),), task)
    return Observation(states_BS=states, raw_states_BS=states, tasks_B=tasks, images_BCHW3=images)


def batch(states: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor | None = None) -> ChunkBatch:
    is_pad = torch.zeros(actions.shape[:2], dtype=torch.bool) if is_pad is None else is_pad
    return ChunkBatch(
        observation=observe(states),
        actions_BKA=actions,
        is_pad_BK=is_pad,
        num_valid=(~is_pad).sum(),
        batch_size=len(actions),
    )


def images(num: int, cameras: int = 1) -> torch.Tensor:
    return torch.randint(256, (num, cameras, 64, 64, 3), dtype=torch.uint8)


def test_inference_is_deterministic_and_uses_z_zero() -> None:
    act, states = model(small()), torch.randn(5, 39)
    first = act.predict(observe(states))
    torch.manual_seed(123)
    assert torch.equal(first, act.predict(observe(states)))
    assert torch.equal(first, act.decode(act.embed(observe(states)), torch.zeros(5, 8)))
    assert not torch.equal(first, act.decode(act.embed(observe(states)), torch.randn(5, 8)))
    assert first.shape == (5, 8, 4)


def test_the_previous_frame_enters_as_velocities_only() -> None:
    states = torch.randn(5, 39)
    previous = states.clone()
    previous[:, 18:36] += 0.3
    without = model(small(velocities=False))
    assert torch.equal(without.predict(observe(states)), without.predict(observe(previous)))
    assert not torch.equal(model(small()).predict(observe(states)), model(small()).predict(observe(previous)))
    moved = torch.zeros(1, 39)
    moved[0, [0, 4, 11, 18, 36]] = torch.tensor([0.5, 0.51, 0.01, 0.495, 9.0])
    assert velocities(moved, objects=True)[0].tolist() == pytest.approx([0.5, 0, 0, 3, 0, 0, 1, 0, 0], abs=1e-4)
    assert velocities(moved, objects=False)[0].tolist() == pytest.approx([0.5, 0, 0], abs=1e-4)


def test_relative_positions_do_not_change_when_everything_is_moved() -> None:
    states = torch.randn(3, 39)
    shifted = states.clone()
    for begin in (0, 4, 11, 36):
        shifted[:, begin : begin + 3] += torch.tensor([0.1, -0.2, 0.3])
    assert torch.allclose(relative_positions(positions(states)), relative_positions(positions(shifted)), atol=1e-4)
    assert relative_positions(positions(states)).shape == (3, RELATIVE_DIM)
    near = torch.zeros(1, 39)
    near[0, 4] = 0.01
    assert relative_positions(positions(near))[0, 0] == pytest.approx(0.1), "object 1 from the hand, linear"
    assert relative_positions(positions(near))[0, RELATIVE_DIM // 2] == pytest.approx(np.tanh(0.5)), (
        "and at the near scale"
    )


def test_every_number_of_the_current_frame_and_the_goal_is_seen() -> None:
    act, states = model(small()), torch.randn(5, 39)
    for number in (0, 3, 4, 17, 36, 38):
        other = states.clone()
        other[:, number] += 1.0
        assert not torch.equal(act.predict(observe(states)), act.predict(observe(other))), number


def test_padded_actions_reach_neither_z_nor_the_loss() -> None:
    act, states, actions = model(small()), torch.randn(3, 39), torch.randn(3, 8, 4)
    is_pad = torch.zeros(3, 8, dtype=torch.bool)
    is_pad[1, 5:] = True
    other = actions.clone()
    other[1, 5:] = 99.0
    embedded = act.embed(observe(states))
    assert torch.equal(act.encode_style(embedded, actions, is_pad)[0], act.encode_style(embedded, other, is_pad)[0])
    predicted = torch.randn(3, 8, 4)
    assert batch(states, actions, is_pad).l1(predicted) == batch(states, other, is_pad).l1(predicted)


def test_l1_is_averaged_over_valid_slots_only() -> None:
    """Three of four slots are padding; dividing by all of them would give 0.25."""
    is_pad = torch.tensor([[False, True, True, True]])
    assert batch(torch.zeros(1, 39), torch.zeros(1, 4, 4), is_pad).l1(torch.ones(1, 4, 4)) == 1.0


def test_kl_is_summed_over_the_latent_and_averaged_over_the_batch() -> None:
    mean, logvar = torch.randn(6, 8), torch.randn(6, 8)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(kl_divergence(mean, logvar, 6), reference.sum(dim=1).mean(), atol=1e-5)
    assert kl_divergence(torch.zeros(2, 8), torch.zeros(2, 8), 2) == 0
    near_prior = 1e-5 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert kl_divergence(torch.zeros(64, 32), near_prior, 64) >= 0


@pytest.mark.parametrize("stack", ["encoder", "decoder", "cvae_encoder"])
def test_every_layer_gets_a_gradient(stack: str) -> None:
    """The original builds seven decoder layers and uses only the output of the first."""
    act = model(small(encoder_layers=2, decoder_layers=3, cvae_layers=2))
    torch.nn.init.normal_(act.cvae_latent.weight)  # initialized to zero, which passes no gradient
    states, actions = torch.randn(4, 39), torch.randn(4, 8, 4)
    act(batch(states, actions))["loss"].backward()
    for depth, layer in enumerate(getattr(act, stack)):
        for name, parameter in layer.named_parameters():
            if depth == 0 and name.startswith("self_attention"):
                continue  # as in DETR, the input slots are zeros: nothing to attend to
            assert parameter.grad is not None, name
            if not name.endswith("key.bias"):  # softmax is invariant to it
                assert parameter.grad.abs().sum() > 0, name


def test_the_posterior_is_initialized_to_the_prior() -> None:
    """Otherwise the KL term is a hundred times the L1 in the first steps and dominates the clipped gradient."""
    act = model(small())
    embedded = act.embed(observe(torch.randn(5, 39)))
    mean, logvar = act.encode_style(embedded, torch.randn(5, 8, 4), torch.zeros(5, 8, dtype=torch.bool))
    assert kl_divergence(mean, logvar, 5) == 0


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("act_small", 0.33), ("act", 42), ("act_image_small", 1.0), ("act_keypoints", 0.97), ("act_image", 53)],
)
def test_presets_have_the_documented_sizes(preset: str, millions: float) -> None:
    config = compose(TrainConfig, [f"policy={preset}"]).policy
    assert isinstance(config, ACTConfig)
    act = ACT(config)
    assert sum(p.numel() for p in act.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)


@pytest.mark.parametrize("backbone", ["small", "keypoints"])
def test_an_image_policy_sees_only_images_and_proprioception(backbone: str) -> None:
    """Objects and goal are hidden, because a robot would not have their coordinates."""
    act = model(replace(small(inputs="image+proprio", cameras="[corner4]", backbone="small"), backbone=backbone))
    states, frames = torch.randn(3, 39), images(3)
    chunk = act.predict(observe(states, images=frames))
    blind = states.clone()
    blind[:, 4:18] += 1.0
    blind[:, 21:] += 1.0  # 18 to 20 is the hand in the previous frame, for its velocity
    assert torch.equal(chunk, act.predict(observe(blind, images=frames)))
    assert not torch.equal(chunk, act.predict(observe(states + torch.eye(39)[3], images=frames)))
    assert not torch.equal(chunk, act.predict(observe(states, images=255 - frames)))
    both = model(small(inputs="image+state", cameras="[corner4]", backbone="small"))
    assert not torch.equal(
        both.predict(observe(states, images=frames)), both.predict(observe(states + torch.eye(39)[38], images=frames))
    )


def test_the_order_of_cameras_matters() -> None:
    act = model(small(inputs="image+proprio", cameras="[corner4,topview]", backbone="small"))
    states, frames = torch.randn(2, 39), images(2, cameras=2)
    chunk = act.predict(observe(states, images=frames))
    assert not torch.allclose(chunk, act.predict(observe(states, images=frames.flip(1))))


def test_tasks_are_distinguished_and_a_single_task_has_no_vector() -> None:
    act, states = model(small(), num_tasks=3), torch.randn(2, 39)
    chunks = [act.predict(observe(states, task)) for task in range(3)]
    assert not torch.equal(chunks[0], chunks[1])
    assert not torch.equal(chunks[1], chunks[2])
    assert model(small()).task is None


def test_without_a_cvae_there_is_no_latent() -> None:
    act, states = model(small(cvae_layers=0)), torch.randn(4, 39)
    losses = act(batch(states, torch.zeros(4, 8, 4)))
    assert losses.keys() == {"loss", "l1"}
    assert losses["l1"] == act.predict(observe(states)).abs().mean()
    assert not [name for name, _ in act.named_parameters() if "cvae" in name or name.startswith("latent")]


def test_a_function_of_the_state_is_learned() -> None:
    """Actions determined by the state are also predicted with z = 0."""
    act = model(small(kl_weight=1))
    act.train()
    states = torch.randn(64, 39)
    actions = states[:, :4].tanh()[:, None].repeat(1, 8, 1)
    samples = batch(states, actions)
    optimizer = torch.optim.AdamW(act.parameters(), lr=3e-3)
    with torch.no_grad():
        before = float(samples.l1(act.predict(samples.observation)))
    for _ in range(150):
        loss = act(samples)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float(samples.l1(act.predict(samples.observation))) < 0.3 * before
