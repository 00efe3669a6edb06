"""ACT, Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705).

A transformer predicts the next K actions at once and is trained with their L1. With ``policy.cvae_layers``, a
conditional VAE sees the actions in training and compresses what the observation does not determine (the demonstrator's
style) into a latent z; at inference z is 0, its prior mean.

Shapes: B batch, K chunk, A action, V low-dimensional input, D width, L sequence, Z latent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.config.policy import ACTConfig
from act_kit.metrics import Metric
from act_kit.policies.chunk_model import ChunkBatch, register_model
from act_kit.policies.chunk_transformer import ChunkTransformer, Embedded
from act_kit.policies.transformer import make_layers, sinusoidal_positions
from act_kit.sim.tasks import ACTION_DIM


@register_model(ACTConfig)
class ACT(ChunkTransformer):
    """The ACT model. ``train/l1_reconstruction`` is the L1 with z from its posterior, ``val/l1`` that with z = 0."""

    config: ACTConfig
    metrics = (
        Metric("train/l1_reconstruction", "action units", "down"),
        Metric("train/kl", "nats", None),
        Metric("val/l1_reconstruction", "action units", "down"),
    )

    def __init__(self, config: ACTConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        has_cvae = config.cvae_layers > 0
        super().__init__(config, num_tasks=num_tasks, task_embeddings_NE=task_embeddings_NE, learns_token=not has_cvae)
        if has_cvae:
            width = config.dim_model
            # CVAE encoder, used in training only: [CLS, state, action_1 … action_K] -> mean and log variance of z.
            self.cvae_cls = nn.Parameter(torch.randn(width) * 0.02)
            self.cvae_state = nn.Linear(self.vector_dim, width)
            self.cvae_action = nn.Linear(ACTION_DIM, width)
            self.cvae_encoder = make_layers(config, config.cvae_layers)
            self.cvae_latent = nn.Linear(width, 2 * config.latent_dim)
            # Initialize the posterior to the prior. Otherwise kl_weight * KL is a hundred times the L1 in the first
            # steps, and gradient clipping leaves almost no gradient for the policy.
            nn.init.zeros_(self.cvae_latent.weight)
            nn.init.zeros_(self.cvae_latent.bias)
            positions = sinusoidal_positions(2 + config.chunk_size, width)
            self.register_buffer("cvae_positions", positions, persistent=False)
            self.latent_in = nn.Linear(config.latent_dim, width)

    def draw_noise(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Draw the noise of z, (B, Z); None without a CVAE."""
        return torch.randn(batch_size, self.config.latent_dim, device=device) if self.config.cvae_layers else None

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return L1 + ``kl_weight`` * KL with z sampled from its posterior given the chunk; L1 alone without a CVAE."""
        embedded = self.embed(batch.observation)
        if not self.config.cvae_layers:
            l1 = batch.l1(self.decode(embedded, None))
            return {"loss": l1 + self.position_loss(embedded, batch), "l1": l1}
        mean_BZ, logvar_BZ = self.encode_style(embedded, batch.actions_BKA, batch.is_pad_BK)
        noise_BZ = torch.randn_like(mean_BZ) if batch.noise is None else batch.noise
        l1 = batch.l1(self.decode(embedded, mean_BZ + torch.exp(0.5 * logvar_BZ) * noise_BZ))
        kl = kl_divergence(mean_BZ.float(), logvar_BZ.float(), batch.batch_size)
        loss = l1 + self.config.kl_weight * kl + self.position_loss(embedded, batch)
        return {"loss": loss, "l1_reconstruction": l1, "kl": kl}

    @property
    def training_l1(self) -> str:
        """Name of the L1 that training minimizes."""
        return "l1_reconstruction" if self.config.cvae_layers else "l1"

    def compute_validation_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the losses of validation, where z = 0, and with a CVAE the L1 with the posterior mean of z."""
        embedded = self.embed(batch.observation)
        losses = {"l1": batch.l1(self.predict_embedded(embedded)), **self.position_errors(embedded, batch)}
        if self.config.cvae_layers:
            mean_BZ, _ = self.encode_style(embedded, batch.actions_BKA, batch.is_pad_BK)
            losses["l1_reconstruction"] = batch.l1(self.decode(embedded, mean_BZ))
        return losses

    def predict_embedded(self, embedded: Embedded) -> Tensor:
        """Predict the chunk (B, K, A) with z = 0, its prior mean; sampling z at inference is a known bug."""
        return self.decode(embedded, None)

    def encode_style(self, embedded: Embedded, actions_BKA: Tensor, is_pad_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and log variance of z, each (B, Z)."""
        cls_B1D = repeat(self.cvae_cls, "d -> b 1 d", b=len(actions_BKA))
        state_B1D = rearrange(self.cvae_state(embedded.vector_BV), "b d -> b 1 d")
        tokens_BLD = torch.cat([cls_B1D, state_B1D, self.cvae_action(actions_BKA)], dim=1)
        is_pad_BL = F.pad(is_pad_BK, (2, 0), value=False)
        for layer in self.cvae_encoder:
            tokens_BLD = layer(tokens_BLD, self.cvae_positions, is_pad_BL)
        mean_BZ, logvar_BZ = self.cvae_latent(tokens_BLD[:, 0]).chunk(2, dim=1)
        return mean_BZ, logvar_BZ

    def decode(self, embedded: Embedded, z_BZ: Tensor | None) -> Tensor:
        """Predict the chunk (B, K, A) from an embedded observation and z; None stands for z = 0."""
        latent_BD = None
        if self.config.cvae_layers:
            vector_BV = embedded.vector_BV
            z_BZ = vector_BV.new_zeros(len(vector_BV), self.config.latent_dim) if z_BZ is None else z_BZ
            latent_BD = self.latent_in(z_BZ)
        memory = self.encode(embedded, latent_BD)
        # Up to the first attention to the memory, the slots are the same for every sample: without dropout, one row is
        # computed for all of them, which saves a third of the decoder's matrix products.
        num_rows = len(memory[0]) if self.training and self.config.dropout else 1
        return self.decode_slots(torch.zeros_like(self.queries).expand(num_rows, -1, -1), memory)


def kl_divergence(mean_BZ: Tensor, logvar_BZ: Tensor, batch_size: int) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), summed over the latent and divided by the size of the whole batch."""
    # 1 + logvar - exp(logvar) would be rounded to either side of 0 near the prior, and a KL below 0 ends the training.
    excess_BZ = (torch.expm1(logvar_BZ) - logvar_BZ).clamp(min=0)
    return (0.5 * (mean_BZ.square() + excess_BZ)).sum(dim=1).sum() / batch_size
