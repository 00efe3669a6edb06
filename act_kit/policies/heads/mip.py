"""Minimal iterative policy: two regressions in one network ("Much Ado About Noising", Pan et al. 2025).

The first predicts the chunk from the observation alone, the second from the observation and a chunk with a little
noise. In use the second refines the prediction of the first.

Shapes: B batch, K chunk, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from act_kit.config.policy import TransformerConfig
from act_kit.options import option
from act_kit.policies.chunk_model import ChunkBatch, register_model
from act_kit.policies.chunk_transformer import Embedded
from act_kit.policies.denoiser import Denoiser

_REFINED = 0.9
"""Time of the second regression, t* in the paper: the fraction of the chunk in its input."""


@dataclass(frozen=True, kw_only=True)
class MIPConfig(TransformerConfig):
    """Options of the minimal iterative policy: those of the transformer."""

    name: str = "mip"
    decoder_layers: int = option(2, min=1, max=64)


@register_model(MIPConfig)
class MIP(Denoiser):
    """Minimal iterative policy. ``train/l1`` is the L1 of the first regression."""

    config: MIPConfig

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the sum of the mean squared errors of both regressions."""
        noise = batch.noise
        if noise is None:
            noise = self.draw_noise(len(batch.actions_BKA), batch.actions_BKA.device)
        noise_BKA, _ = self.split_noise(noise)
        embedded = self.embed(batch.observation)
        memory = self.encode(embedded)
        first_BKA = self._predict_first(memory).float()
        noisy_BKA = torch.lerp(noise_BKA, batch.actions_BKA, _REFINED)
        second_BKA = self._refine(memory, noisy_BKA).float()
        loss = batch.mean((first_BKA - batch.actions_BKA).square() + (second_BKA - batch.actions_BKA).square())
        return {"loss": loss + self.position_loss(embedded, batch), "l1": batch.l1(first_BKA.detach())}

    def predict_embedded(self, embedded: Embedded) -> Tensor:
        """Predict the chunk (B, K, A), and refine it."""
        memory = self.encode(embedded)
        return self._refine(memory, _REFINED * self._predict_first(memory))

    def _predict_first(self, memory: tuple[Tensor, Tensor]) -> Tensor:
        time_B = torch.zeros_like(memory[0][:, 0, 0])
        empty_BKA = memory[0].new_zeros(len(memory[0]), self.config.chunk_size, self.action_in.in_features)
        return self.denoise(memory, empty_BKA, time_B)

    def _refine(self, memory: tuple[Tensor, Tensor], noisy_BKA: Tensor) -> Tensor:
        time_B = torch.full_like(memory[0][:, 0, 0], _REFINED)
        return self.denoise(memory, noisy_BKA, time_B)
