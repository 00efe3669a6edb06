"""Flow matching (Lipman et al. 2023, arXiv:2210.02747) over chunks, as in π0 (Black et al. 2024, arXiv:2410.24164).

The model learns the velocity a - ε at x = (1 - t) ε + t a between noise ε and a demonstrated chunk a, and a chunk is
predicted by integrating the velocity from noise. It can represent several ways of acting from one observation, of which
an L1 predicts the median.

The noise at inference is drawn once, when the model is built, and is part of the checkpoint: the same observation gives
the same chunk in every evaluation, export and server, and near an ambiguous observation a policy does not change
between the ways from query to query.

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
from act_kit.sim.tasks import ACTION_DIM


@dataclass(frozen=True, kw_only=True)
class FlowConfig(TransformerConfig):
    """Options of flow matching.

    Attributes:
        flow_steps: Steps of Euler's method from noise to a chunk, at inference.
    """

    name: str = "flow"
    decoder_layers: int = option(2, min=1, max=64)
    flow_steps: int = option(5, min=1, max=1000)


@register_model(FlowConfig)
class Flow(Denoiser):
    """Flow matching. ``train/l1`` is the L1 of the chunk that the velocity at one time points to."""

    config: FlowConfig
    noise_KA: Tensor

    def __init__(self, config: FlowConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        super().__init__(config, num_tasks=num_tasks, task_embeddings_NE=task_embeddings_NE)
        self.register_buffer("noise_KA", torch.randn(config.chunk_size, ACTION_DIM))

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity at a random time."""
        noise = batch.noise
        if noise is None:
            noise = self.draw_noise(len(batch.actions_BKA), batch.actions_BKA.device)
        noise_BKA, time_B = self.split_noise(noise)
        time_B11 = time_B[:, None, None]
        noisy_BKA = torch.lerp(noise_BKA, batch.actions_BKA, time_B11)
        embedded = self.embed(batch.observation)
        velocity_BKA = self.denoise(self.encode(embedded), noisy_BKA, time_B).float()
        loss = batch.mean((velocity_BKA - (batch.actions_BKA - noise_BKA)).square())
        loss = loss + self.position_loss(embedded, batch)
        return {"loss": loss, "l1": batch.l1(noisy_BKA + (1 - time_B11) * velocity_BKA.detach())}

    def predict_embedded(self, embedded: Embedded) -> Tensor:
        """Predict the chunk (B, K, A) from the noise of the checkpoint."""
        memory = self.encode(embedded)
        num_rows, num_steps = len(memory[0]), self.config.flow_steps
        chunk_BKA = self.noise_KA.expand(num_rows, -1, -1)
        for step in range(num_steps):
            time_B = torch.full_like(memory[0][:, 0, 0], step / num_steps)
            chunk_BKA = chunk_BKA + self.denoise(memory, chunk_BKA, time_B) / num_steps
        return chunk_BKA
