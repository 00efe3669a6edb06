"""ACT, Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705), on states, images or both.

A transformer predicts the next K actions at once. In training, the encoder of a conditional VAE sees the actions and
compresses what the observation does not determine (the demonstrator's style) into a latent z; at inference z is 0, its
prior mean.

Shapes: B batch, K chunk, A action, S state, V low-dimensional input, D width, H heads, L sequence, Z latent, C cameras.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.config import ACTConfig
from act_kit.metrics import Metric
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, register_model
from act_kit.policies.state_features import RELATIVE_DIM, VELOCITY_DIM, relative_positions, velocities
from act_kit.policies.task_embedding import TASK_DIM, TaskEncoder
from act_kit.policies.vision import ImageEncoder, ResNet18, load_backbone
from act_kit.sim.tasks import ACTION_DIM

STATE_PARTS = (slice(0, 18), slice(36, 39))
"""Parts of the state that the policy sees: hand, gripper, both objects, and the goal.

The previous frame between them enters as velocities only (``policy.velocities``).
"""

PROPRIO_PARTS = (slice(0, 4),)
"""Proprioceptive part of the state: hand and gripper."""

Embedded = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""Embedded observation: visible parts of the state and the task vector (B, V); image tokens (B, L, D) with their
positions (L, D), or None."""


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return fixed positions (length, width), sines then cosines (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], dim=1)


class Attention(nn.Module):
    """Multi-head attention with a residual connection and post-norm."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens_BLD: Tensor, query_BLD: Tensor, key_BLD: Tensor, value_BLD: Tensor, is_pad_BL: Tensor | None = None
    ) -> Tensor:
        """Return ``LayerNorm(tokens + dropout(attention(query, key, value)))``; one row of queries serves all keys."""
        query, key, value = (
            rearrange(layer(tokens), "b l (h d) -> b h l d", h=self.num_heads)
            for layer, tokens in ((self.query, query_BLD), (self.key, key_BLD), (self.value, value_BLD))
        )
        query = query.expand(len(key), -1, -1, -1)
        mask = None if is_pad_BL is None else ~is_pad_BL[:, None, None, :]
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        update_BLD = self.out(rearrange(mixed, "b h l d -> b l (h d)"))
        out: Tensor = self.norm(tokens_BLD + self.dropout(update_BLD))
        return out


class TransformerLayer(nn.Module):
    """Self-attention, in a decoder layer attention to the memory, then feed-forward.

    Positions are added to queries and keys and not to values, as in DETR.
    """

    def __init__(self, config: ACTConfig, *, sees_memory: bool) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config) if sees_memory else None
        self.feedforward = nn.Sequential(
            nn.Linear(config.dim_model, config.dim_feedforward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim_feedforward, config.dim_model),
        )
        self.norm = nn.LayerNorm(config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens_BLD: Tensor,
        positions_LD: Tensor,
        is_pad_BL: Tensor | None = None,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``memory`` are its tokens and their positions, for a decoder layer."""
        placed = tokens_BLD + positions_LD
        tokens_BLD = self.self_attention(tokens_BLD, placed, placed, tokens_BLD, is_pad_BL)
        if self.cross_attention is not None and memory is not None:
            memory_BLD, memory_positions_LD = memory
            placed, memory_placed = tokens_BLD + positions_LD, memory_BLD + memory_positions_LD
            tokens_BLD = self.cross_attention(tokens_BLD, placed, memory_placed, memory_BLD)
        out: Tensor = self.norm(tokens_BLD + self.dropout(self.feedforward(tokens_BLD)))
        return out


def _layers(config: ACTConfig, num: int, *, sees_memory: bool = False) -> nn.ModuleList:
    return nn.ModuleList(TransformerLayer(config, sees_memory=sees_memory) for _ in range(num))


@register_model(ACTConfig)
class ACT(ChunkModel):
    """The ACT model. ``train/l1_reconstruction`` is the L1 with z from its posterior, ``val/l1`` that with z = 0."""

    config: ACTConfig
    metrics = (
        Metric("train/l1_reconstruction", "action units", "down"),
        Metric("train/kl", "nats", None),
        Metric("val/l1_reconstruction", "action units", "down"),
    )

    def __init__(self, config: ACTConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        super().__init__(config)
        width = config.dim_model
        self._parts = STATE_PARTS if config.sees_state else PROPRIO_PARTS
        vector_dim = sum(part.stop - part.start for part in self._parts)
        self._sees_relative = config.relative_positions and config.sees_state
        vector_dim += RELATIVE_DIM if self._sees_relative else 0
        vector_dim += VELOCITY_DIM[config.sees_state] if config.velocities else 0
        self.task = TaskEncoder(num_tasks, task_embeddings_NE) if num_tasks > 1 else None
        vector_dim += TASK_DIM if self.task else 0
        if config.sees_images:
            self.vision = ImageEncoder(
                backbone=config.backbone,
                width=width,
                num_cameras=len(config.cameras),
                backbone_weights=config.backbone_weights,
            )
        if config.cvae_layers:
            # CVAE encoder, used in training only: [CLS, state, action_1 … action_K] -> mean and log variance of z.
            self.cvae_cls = nn.Parameter(torch.randn(width) * 0.02)
            self.cvae_state = nn.Linear(vector_dim, width)
            self.cvae_action = nn.Linear(ACTION_DIM, width)
            self.cvae_encoder = _layers(config, config.cvae_layers)
            self.cvae_latent = nn.Linear(width, 2 * config.latent_dim)
            # Initialize the posterior to the prior. Otherwise kl_weight * KL is a hundred times the L1 in the first
            # steps, and gradient clipping leaves almost no gradient for the policy.
            nn.init.zeros_(self.cvae_latent.weight)
            nn.init.zeros_(self.cvae_latent.bias)
            positions = sinusoidal_positions(2 + config.chunk_size, width)
            self.register_buffer("cvae_positions", positions, persistent=False)
            self.latent_in = nn.Linear(config.latent_dim, width)
        else:
            # Token in place of z: attention over the state token alone would have a single key and be linear.
            self.no_latent = nn.Parameter(torch.randn(width) * 0.02)
        # Policy: [z, state, images] -> K slots. Hand and objects share one token, because their relative positions
        # matter.
        self.state_in = nn.Sequential(
            nn.Linear(vector_dim, config.dim_feedforward), nn.ReLU(), nn.Linear(config.dim_feedforward, width)
        )
        self.token_positions = nn.Parameter(torch.randn(2, width) * 0.02)
        self.encoder = _layers(config, config.encoder_layers)
        self.queries = nn.Parameter(torch.randn(config.chunk_size, width))
        self.decoder = _layers(config, config.decoder_layers, sees_memory=True)
        self.action_out = nn.Linear(width, ACTION_DIM)

    def load_pretrained(self) -> None:
        """Load the weights of ``backbone_weights``, if there are any."""
        if self.config.backbone_weights:
            assert isinstance(self.vision.net, ResNet18)
            load_backbone(self.vision.net, Path(self.config.backbone_weights))

    def draw_noise(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Draw the noise of z, (B, Z); None without a CVAE."""
        return torch.randn(batch_size, self.config.latent_dim, device=device) if self.config.cvae_layers else None

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return L1 + ``kl_weight`` * KL with z sampled from its posterior given the chunk; L1 alone without a CVAE."""
        embedded = self.embed(batch.observation)
        if not self.config.cvae_layers:
            l1 = batch.l1(self.decode(embedded, None))
            return {"loss": l1, "l1": l1}
        mean_BZ, logvar_BZ = self.encode_style(embedded, batch.actions_BKA, batch.is_pad_BK)
        noise_BZ = torch.randn_like(mean_BZ) if batch.noise is None else batch.noise
        l1 = batch.l1(self.decode(embedded, mean_BZ + torch.exp(0.5 * logvar_BZ) * noise_BZ))
        kl = kl_divergence(mean_BZ.float(), logvar_BZ.float(), batch.batch_size)
        return {"loss": l1 + self.config.kl_weight * kl, "l1_reconstruction": l1, "kl": kl}

    @property
    def training_l1(self) -> str:
        """Name of the L1 that training minimizes."""
        return "l1_reconstruction" if self.config.cvae_layers else "l1"

    def compute_validation_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the L1 with z = 0 as at inference and, with a CVAE, with the posterior mean of z."""
        embedded = self.embed(batch.observation)
        losses = {"l1": batch.l1(self.decode(embedded, None))}
        if self.config.cvae_layers:
            mean_BZ, _ = self.encode_style(embedded, batch.actions_BKA, batch.is_pad_BK)
            losses["l1_reconstruction"] = batch.l1(self.decode(embedded, mean_BZ))
        return losses

    def predict(self, observation: Observation) -> Tensor:
        """Predict the chunk (B, K, A) with z = 0, its prior mean; sampling z at inference is a known bug."""
        return self.decode(self.embed(observation), None)

    def embed(self, observation: Observation) -> Embedded:
        """Embed the observation; the result does not depend on z."""
        parts = [observation.states_BS[:, part] for part in self._parts]
        if self._sees_relative:
            parts.append(relative_positions(observation.raw_states_BS))
        if self.config.velocities:
            parts.append(velocities(observation.raw_states_BS, objects=self.config.sees_state))
        if self.task is not None:
            parts.append(self.task(observation.tasks_B))
        images = self.vision(observation.images_BCHW3) if self.config.sees_images else None
        return torch.cat(parts, dim=1), images

    def encode_style(self, embedded: Embedded, actions_BKA: Tensor, is_pad_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and log variance of z, each (B, Z)."""
        cls_B1D = repeat(self.cvae_cls, "d -> b 1 d", b=len(actions_BKA))
        state_B1D = rearrange(self.cvae_state(embedded[0]), "b d -> b 1 d")
        tokens_BLD = torch.cat([cls_B1D, state_B1D, self.cvae_action(actions_BKA)], dim=1)
        is_pad_BL = F.pad(is_pad_BK, (2, 0), value=False)
        for layer in self.cvae_encoder:
            tokens_BLD = layer(tokens_BLD, self.cvae_positions, is_pad_BL)
        mean_BZ, logvar_BZ = self.cvae_latent(tokens_BLD[:, 0]).chunk(2, dim=1)
        return mean_BZ, logvar_BZ

    def decode(self, embedded: Embedded, z_BZ: Tensor | None) -> Tensor:
        """Predict the chunk (B, K, A) from an embedded observation and z; None stands for z = 0."""
        vector_BV, images = embedded
        if not self.config.cvae_layers:
            latent_BD = repeat(self.no_latent, "d -> b d", b=len(vector_BV))
        else:
            z_BZ = vector_BV.new_zeros(len(vector_BV), self.config.latent_dim) if z_BZ is None else z_BZ
            latent_BD = self.latent_in(z_BZ)
        memory_BLD = torch.stack([latent_BD, self.state_in(vector_BV)], dim=1)
        positions_LD: Tensor = self.token_positions
        if images is not None:
            memory_BLD = torch.cat([memory_BLD, images[0]], dim=1)
            positions_LD = torch.cat([positions_LD, images[1]])
        for layer in self.encoder:
            memory_BLD = layer(memory_BLD, positions_LD)
        # Up to the first attention to the memory, the slots are the same for every sample: without dropout, one row is
        # computed for all of them, which saves a third of the decoder's matrix products.
        num_rows = len(memory_BLD) if self.training and self.config.dropout else 1
        slots_BKD = torch.zeros_like(self.queries).expand(num_rows, -1, -1)
        for layer in self.decoder:
            slots_BKD = layer(slots_BKD, self.queries, memory=(memory_BLD, positions_LD))
        actions_BKA: Tensor = self.action_out(slots_BKD)
        return actions_BKA


def kl_divergence(mean_BZ: Tensor, logvar_BZ: Tensor, batch_size: int) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), summed over the latent and divided by the size of the whole batch."""
    return (-0.5 * (1 + logvar_BZ - mean_BZ.square() - logvar_BZ.exp())).sum(dim=1).sum() / batch_size
