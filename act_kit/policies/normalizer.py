"""Scaling states to unit variance, the same way in training and in use: it is a part of the checkpoint.

Many dimensions of a Meta-World state never vary in a dataset, or by a hair. Divided by their standard deviation, a
shift of a few centimetres at evaluation would reach the network as ten million sigmas. So constant dimensions are
mapped to 0, and no dimension is magnified beyond one unit per centimetre.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Shapes: B batch, T steps, S state.

CONSTANT_RANGE = 1e-3
"""A dimension that varies by less in all of the data (1 mm; a thousandth of a quaternion) is constant."""

MIN_STD = 1e-2
"""The smallest standard deviation divided by (1 cm)."""


class Normalizer(nn.Module):
    """``(state - mean) / std``, and 0 in constant dimensions."""

    mean: Tensor
    std: Tensor
    is_constant: Tensor

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(state_dim))
        self.register_buffer("std", torch.ones(state_dim))
        self.register_buffer("is_constant", torch.zeros(state_dim, dtype=torch.bool))

    @torch.no_grad()
    def fit(self, states_TS: Tensor) -> None:
        """Take the statistics of the training states, float32."""
        states = states_TS.double()
        self.mean.copy_(states.mean(dim=0))
        self.std.copy_(states.std(dim=0).clamp(min=MIN_STD))
        self.is_constant.copy_(states.amax(dim=0) - states.amin(dim=0) < CONSTANT_RANGE)

    def forward(self, states_BS: Tensor) -> Tensor:
        """Normalise float32 states."""
        assert states_BS.shape[-1] == len(self.mean), f"states of {states_BS.shape[-1]} numbers, not {len(self.mean)}"
        return ((states_BS - self.mean) / self.std).masked_fill(self.is_constant, 0.0)

    @torch.no_grad()
    def largest_z(self, states_BS: Tensor) -> Tensor:
        """Return the largest |z| of each state, (B,), constant dimensions included: how far it is from the data."""
        return ((states_BS - self.mean) / self.std).abs().amax(dim=1)
