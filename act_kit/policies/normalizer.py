"""State normalizer: scales states to unit variance and is part of the checkpoint, so training and inference match.

Many dimensions of a Meta-World state are constant or nearly constant in a dataset. Divided by their standard deviation,
a shift of a few centimeters at evaluation would reach the network as ten million sigmas. Therefore constant dimensions
are mapped to 0, and no dimension is scaled by more than one unit per centimeter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Shapes: B batch, T steps, S state.

CONSTANT_RANGE = 1e-3
"""Dimensions with a smaller range over the whole dataset (1 mm; 0.001 for a quaternion) count as constant."""

MIN_STD = 1e-2
"""Lower bound of the standard deviation that states are divided by (1 cm)."""


class Normalizer(nn.Module):
    """Compute ``(state - mean) / std``, and 0 in constant dimensions."""

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
        """Compute the statistics of the training states, float32."""
        states = states_TS.double()
        self.mean.copy_(states.mean(dim=0))
        self.std.copy_(states.std(dim=0).clamp(min=MIN_STD))
        self.is_constant.copy_(states.amax(dim=0) - states.amin(dim=0) < CONSTANT_RANGE)

    def forward(self, states_BS: Tensor) -> Tensor:
        """Normalize float32 states."""
        assert states_BS.shape[-1] == len(self.mean), f"state dim {states_BS.shape[-1]}: expected {len(self.mean)}"
        return ((states_BS - self.mean) / self.std).masked_fill(self.is_constant, 0.0)

    @torch.no_grad()
    def largest_z(self, states_BS: Tensor) -> Tensor:
        """Return each state's largest |z|, (B,), including constant dimensions: its distance to the training data."""
        return ((states_BS - self.mean) / self.std).abs().amax(dim=1)
