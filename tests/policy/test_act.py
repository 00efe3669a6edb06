"""ACT: what its parts may see, and that every part counts."""

from __future__ import annotations

import pytest
import torch

from act_kit.config import PolicyConfig, TrainConfig, compose
from act_kit.policy.act import ACT, kl_divergence, masked_l1
from tests.conftest import tiny_config


def small(**changes: int) -> PolicyConfig:
    return tiny_config(*(f"policy.{key}={value}" for key, value in changes.items())).policy


def model(config: PolicyConfig) -> ACT:
    torch.manual_seed(0)
    return ACT(config).eval()


def test_inference_is_deterministic_and_uses_z_zero() -> None:
    act, states = model(small()), torch.randn(5, 39)
    first = act.predict(states)
    torch.manual_seed(123)
    assert torch.equal(first, act.predict(states))
    assert torch.equal(first, act.decode(states, torch.zeros(5, 8)))
    assert not torch.equal(first, act.decode(states, torch.randn(5, 8)))
    assert first.shape == (5, 8, 4)


def test_the_previous_frame_is_not_looked_at() -> None:
    act, states = model(small()), torch.randn(5, 39)
    other = states.clone()
    other[:, 18:36] += 1.0
    assert torch.equal(act.predict(states), act.predict(other))
    for seen in (0, 3, 4, 17, 36, 38):
        other = states.clone()
        other[:, seen] += 1.0
        assert not torch.equal(act.predict(states), act.predict(other)), seen


def test_padded_actions_reach_neither_z_nor_the_loss() -> None:
    act, states, actions = model(small()), torch.randn(3, 39), torch.randn(3, 8, 4)
    is_pad = torch.zeros(3, 8, dtype=torch.bool)
    is_pad[1, 5:] = True
    other = actions.clone()
    other[1, 5:] = 99.0
    assert torch.equal(act.encode_style(states, actions, is_pad)[0], act.encode_style(states, other, is_pad)[0])
    predicted = torch.randn(3, 8, 4)
    assert masked_l1(predicted, actions, is_pad) == masked_l1(predicted, other, is_pad)


def test_l1_is_averaged_over_valid_slots_only() -> None:
    """Three slots of four are padding: dividing by all of them would say 0.25."""
    is_pad = torch.tensor([[False, True, True, True]])
    assert masked_l1(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), is_pad) == 1.0


def test_kl_is_summed_over_the_latent_and_averaged_over_the_batch() -> None:
    mean, logvar = torch.randn(6, 8), torch.randn(6, 8)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(kl_divergence(mean, logvar), reference.sum(dim=1).mean(), atol=1e-5)
    assert kl_divergence(torch.zeros(2, 8), torch.zeros(2, 8)) == 0


@pytest.mark.parametrize("stack", ["encoder", "decoder", "cvae_encoder"])
def test_every_layer_counts(stack: str) -> None:
    """The original builds seven decoder layers and reads the output of the first."""
    act = model(small(encoder_layers=2, decoder_layers=3, cvae_layers=2))
    torch.nn.init.normal_(act.cvae_latent.weight)  # it begins at zero, and lets nothing through yet
    states, actions = torch.randn(4, 39), torch.randn(4, 8, 4)
    prediction = act(states, actions, torch.zeros(4, 8, dtype=torch.bool))
    (prediction.actions_BKA.square().sum() + prediction.mean_BZ.square().sum()).backward()
    for depth, layer in enumerate(getattr(act, stack)):
        for name, parameter in layer.named_parameters():
            if depth == 0 and name.startswith("self_attention"):
                continue  # as in DETR, the slots come in as zeros: nothing to attend to yet
            assert parameter.grad is not None, name
            if not name.endswith("key.bias"):  # softmax does not see it
                assert parameter.grad.abs().sum() > 0, name


def test_the_posterior_begins_as_the_prior() -> None:
    """Otherwise the first steps go into a KL a hundred times the L1, and what clipping leaves of them."""
    mean, logvar = model(small()).encode_style(
        torch.randn(5, 39), torch.randn(5, 8, 4), torch.zeros(5, 8, dtype=torch.bool)
    )
    assert kl_divergence(mean, logvar) == 0


def test_presets_are_the_sizes_they_claim() -> None:
    sizes = {
        name: sum(p.numel() for p in ACT(compose("train", TrainConfig, [f"policy={name}"]).policy).parameters())
        for name in ("act_small", "act")
    }
    assert 0.3e6 < sizes["act_small"] < 0.5e6
    assert 30e6 < sizes["act"] < 60e6


def test_fits_a_function_of_the_state() -> None:
    """Actions that follow from the state are learnt by z = 0 too."""
    act = model(small())
    act.train()
    states = torch.randn(64, 39)
    actions = states[:, :4].tanh()[:, None].repeat(1, 8, 1)
    is_pad = torch.zeros(64, 8, dtype=torch.bool)
    optimizer = torch.optim.AdamW(act.parameters(), lr=3e-3)
    with torch.no_grad():
        before = float(masked_l1(act.predict(states), actions, is_pad))
    for _ in range(150):
        prediction = act(states, actions, is_pad)
        loss = masked_l1(prediction.actions_BKA, actions, is_pad) + kl_divergence(
            prediction.mean_BZ, prediction.logvar_BZ
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float(masked_l1(act.predict(states), actions, is_pad)) < 0.3 * before
