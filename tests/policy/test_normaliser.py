"""The normaliser: what never varied says nothing, and nothing is magnified."""

from __future__ import annotations

import torch

from act_kit.policy.normaliser import MIN_STD, Normaliser


def fitted() -> tuple[Normaliser, torch.Tensor]:
    torch.manual_seed(0)
    states = torch.stack(
        [torch.randn(500) * 0.1 + 0.6, torch.full((500,), 0.2), 0.02 + torch.rand(500) * 1e-5, torch.rand(500) * 4e-3],
        dim=1,
    )
    normaliser = Normaliser(4)
    normaliser.fit(states)
    return normaliser, states


def test_constant_dimensions_become_zero_and_stay_zero_when_shifted() -> None:
    normaliser, states = fitted()
    assert normaliser.is_constant.tolist() == [False, True, True, False]
    shifted = states + 0.1
    assert (normaliser(shifted)[:, 1:3] == 0).all()


def test_a_tenth_of_a_metre_is_never_more_than_ten_sigmas_beyond_the_data() -> None:
    normaliser, states = fitted()
    beyond = normaliser(states + 0.1) - normaliser(states)
    assert beyond.abs().max() <= 0.1 / MIN_STD + 1e-3


def test_varying_dimensions_have_unit_variance() -> None:
    normaliser, states = fitted()
    z = normaliser(states)[:, 0]
    assert abs(float(z.mean())) < 1e-4
    assert abs(float(z.std()) - 1) < 1e-4


def test_the_largest_z_counts_constant_dimensions_too() -> None:
    normaliser, states = fitted()
    far = states[:1].clone()
    far[0, 1] += 0.5
    assert float(normaliser.largest_z(far)) > 40
