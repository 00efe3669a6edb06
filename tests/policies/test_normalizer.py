"""Normalizer: constant dimensions become 0, and no dimension is scaled up without bound."""

from __future__ import annotations

import torch

from act_kit.policies.normalizer import MIN_STD, Normalizer


def fitted() -> tuple[Normalizer, torch.Tensor]:
    torch.manual_seed(0)
    states = torch.stack(
        [torch.randn(500) * 0.1 + 0.6, torch.full((500,), 0.2), 0.02 + torch.rand(500) * 1e-5, torch.rand(500) * 4e-3],
        dim=1,
    )
    normalizer = Normalizer(4)
    normalizer.fit(states)
    return normalizer, states


def test_constant_dimensions_become_zero_and_stay_zero_when_shifted() -> None:
    normalizer, states = fitted()
    assert normalizer.is_constant.tolist() == [False, True, True, False]
    shifted = states + 0.1
    assert (normalizer(shifted)[:, 1:3] == 0).all()


def test_a_shift_of_10_cm_is_at_most_ten_sigmas() -> None:
    normalizer, states = fitted()
    beyond = normalizer(states + 0.1) - normalizer(states)
    assert beyond.abs().max() <= 0.1 / MIN_STD + 1e-3


def test_varying_dimensions_have_unit_variance() -> None:
    normalizer, states = fitted()
    z = normalizer(states)[:, 0]
    assert abs(float(z.mean())) < 1e-4
    assert abs(float(z.std()) - 1) < 1e-4


def test_the_largest_z_includes_constant_dimensions() -> None:
    normalizer, states = fitted()
    far = states[:1].clone()
    far[0, 1] += 0.5
    assert float(normalizer.largest_z(far)) > 40
