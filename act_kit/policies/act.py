"""ACT, Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705), on states, images or both.

A transformer predicts the next K actions at once. In training, the encoder of a conditional VAE sees the actions and
compresses what the observation does not determine (the demonstrator's style) into a latent z; at inference z is 0, its
prior mean.

Shapes: B batch, K chunk, A action, S state, V low-dimensional input, D width, H heads, L sequence, Z latent, C cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.config import PolicyConfig
from act_kit.policies.task_embedding import TASK_DIM, TaskEncoder
from act_kit.policies.vision import ImageEncoder
from act_kit.sim.tasks import ACTION_DIM

STATE_PARTS = (slice(0, 18), slice(36, 39))
"""Parts of the state that the policy sees: hand, gripper, both objects, and the goal.

The previous frame between them is left out: with it, a policy learns to repeat its last motion, which fits the data and
fails in closed loop (de Haan et al. 2019, arXiv:1905.11979).
"""

PROPRIO_PARTS = (slice(0, 4),)
"""Proprioceptive part of the state: hand and gripper."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Input of the model, on its device.

    Attributes:
        states_BS: float32, normalized.
        tasks_B: int64, index of each row's task among the policy's tasks.
        images_BCHW3: uint8, or None for a policy without images.
    """

    states_BS: Tensor
    tasks_B: Tensor
    images_BCHW3: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embedded observation.

    Attributes:
        vector_BV: Visible parts of the state, and the task vector.
        images_BLD: Image tokens, or None.
        positions_LD: Position embeddings of the image tokens, or None.
    """

    vector_BV: Tensor
    images_BLD: Tensor | None
    positions_LD: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Output of the model in training.

    Attributes:
        actions_BKA: Predicted chunk, decoded from the CVAE's z.
        mean_BZ, logvar_BZ: Posterior of z; None in a model without a latent.
    """

    actions_BKA: Tensor
    mean_BZ: Tensor | None
    logvar_BZ: Tensor | None


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return fixed positions (length, width), sines then cosines (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], dim=1)


class Attention(nn.Module):
    """Multi-head attention with positions in the queries and keys and not in the values, as in DETR."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim_model, config.dim_model)
        self.key = nn.Linear(config.dim_model, config.dim_model)
        self.value = nn.Linear(config.dim_model, config.dim_model)
        self.out = nn.Linear(config.dim_model, config.dim_model)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, query_BLD: Tensor, key_BLD: Tensor, value_BLD: Tensor, is_pad_BL: Tensor | None = None) -> Tensor:
        query, key, value = (
            rearrange(layer(tokens), "b l (h d) -> b h l d", h=self.num_heads)
            for layer, tokens in ((self.query, query_BLD), (self.key, key_BLD), (self.value, value_BLD))
        )
        mask = None if is_pad_BL is None else ~is_pad_BL[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        out: Tensor = self.out(rearrange(mixed, "b h l d -> b l (h d)"))
        return out


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU in between."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(
            nn.Linear(config.dim_model, config.dim_feedforward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim_feedforward, config.dim_model),
        )


class Residual(nn.Module):
    """Residual connection with post-norm: ``LayerNorm(x + dropout(update))``."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BLD: Tensor, update_BLD: Tensor) -> Tensor:
        out: Tensor = self.norm(tokens_BLD + self.dropout(update_BLD))
        return out


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.attention, self.after_attention = Attention(config), Residual(config)
        self.feedforward, self.after_feedforward = FeedForward(config), Residual(config)

    def forward(self, tokens_BLD: Tensor, positions_LD: Tensor, is_pad_BL: Tensor | None = None) -> Tensor:
        placed = tokens_BLD + positions_LD
        tokens_BLD = self.after_attention(tokens_BLD, self.attention(placed, placed, tokens_BLD, is_pad_BL))
        out: Tensor = self.after_feedforward(tokens_BLD, self.feedforward(tokens_BLD))
        return out


class DecoderLayer(nn.Module):
    """Self-attention among the K slots, attention to the observation, feed-forward."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.self_attention, self.after_self_attention = Attention(config), Residual(config)
        self.cross_attention, self.after_cross_attention = Attention(config), Residual(config)
        self.feedforward, self.after_feedforward = FeedForward(config), Residual(config)

    def forward(self, slots_BKD: Tensor, queries_KD: Tensor, memory_BLD: Tensor, positions_LD: Tensor) -> Tensor:
        placed = slots_BKD + queries_KD
        slots_BKD = self.after_self_attention(slots_BKD, self.self_attention(placed, placed, slots_BKD))
        update = self.cross_attention(slots_BKD + queries_KD, memory_BLD + positions_LD, memory_BLD)
        slots_BKD = self.after_cross_attention(slots_BKD, update)
        out: Tensor = self.after_feedforward(slots_BKD, self.feedforward(slots_BKD))
        return out


class ACT(nn.Module):
    """The ACT model. Actions are in the units of the environment, [-1, 1]."""

    def __init__(self, config: PolicyConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        """Build the model with random weights; ``config.backbone_weights`` are loaded separately."""
        super().__init__()
        self.config = config
        self._parts = STATE_PARTS if config.sees_state else PROPRIO_PARTS
        width = config.dim_model
        vector_dim = sum(part.stop - part.start for part in self._parts)
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
            self.cvae_encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.cvae_layers))
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
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.queries = nn.Parameter(torch.randn(config.chunk_size, width))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.action_out = nn.Linear(width, ACTION_DIM)

    def forward(
        self, observation: Observation, actions_BKA: Tensor, is_pad_BK: Tensor, noise_BZ: Tensor | None = None
    ) -> Prediction:
        """Predict the chunk with z sampled from its posterior given the chunk, for training.

        ``noise_BZ`` is the standard normal noise that z is sampled with; None samples it here.
        """
        embedded = self.embed(observation)
        if not self.config.cvae_layers:
            return Prediction(actions_BKA=self.decode(embedded, None), mean_BZ=None, logvar_BZ=None)
        mean_BZ, logvar_BZ = self.encode_style(embedded, actions_BKA, is_pad_BK)
        noise_BZ = torch.randn_like(mean_BZ) if noise_BZ is None else noise_BZ
        z_BZ = mean_BZ + torch.exp(0.5 * logvar_BZ) * noise_BZ
        return Prediction(actions_BKA=self.decode(embedded, z_BZ), mean_BZ=mean_BZ, logvar_BZ=logvar_BZ)

    def predict(self, observation: Observation) -> Tensor:
        """Predict the chunk (B, K, A) with z = 0, its prior mean, at inference. (Sampling z here is a known bug.)"""
        return self.decode(self.embed(observation), None)

    def embed(self, observation: Observation) -> Embedded:
        """Embed the observation; the result does not depend on z."""
        parts = [observation.states_BS[:, part] for part in self._parts]
        if self.task is not None:
            parts.append(self.task(observation.tasks_B))
        images_BLD = positions_LD = None
        if self.config.sees_images:
            images_BLD, positions_LD = self.vision(observation.images_BCHW3)
        return Embedded(vector_BV=torch.cat(parts, dim=1), images_BLD=images_BLD, positions_LD=positions_LD)

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
        vector_BV = embedded.vector_BV
        if not self.config.cvae_layers:
            latent_BD = repeat(self.no_latent, "d -> b d", b=len(vector_BV))
        else:
            z_BZ = vector_BV.new_zeros(len(vector_BV), self.config.latent_dim) if z_BZ is None else z_BZ
            latent_BD = self.latent_in(z_BZ)
        memory_BLD = torch.stack([latent_BD, self.state_in(vector_BV)], dim=1)
        positions_LD: Tensor = self.token_positions
        if embedded.images_BLD is not None and embedded.positions_LD is not None:
            memory_BLD = torch.cat([memory_BLD, embedded.images_BLD], dim=1)
            positions_LD = torch.cat([positions_LD, embedded.positions_LD])
        for layer in self.encoder:
            memory_BLD = layer(memory_BLD, positions_LD)
        slots_BKD = torch.zeros_like(self.queries).expand(len(memory_BLD), -1, -1)
        for layer in self.decoder:
            slots_BKD = layer(slots_BKD, self.queries, memory_BLD, positions_LD)
        actions_BKA: Tensor = self.action_out(slots_BKD)
        return actions_BKA


def masked_l1(predicted_BKA: Tensor, actions_BKA: Tensor, is_pad_BK: Tensor, num_valid: Tensor) -> Tensor:
    """Return the sum of absolute errors over valid slots, divided by the whole batch's number of valid action entries.

    For a part of a batch this is the part's share of the batch mean. (The original averages over all slots, so short
    episodes dilute the loss.)
    """
    error_BKA = (predicted_BKA - actions_BKA).abs() * (~is_pad_BK)[..., None]
    return error_BKA.sum() / (num_valid * actions_BKA.shape[-1])


def kl_divergence(mean_BZ: Tensor, logvar_BZ: Tensor, batch_size: int) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), summed over the latent and divided by the size of the whole batch."""
    return (-0.5 * (1 + logvar_BZ - mean_BZ.square() - logvar_BZ.exp())).sum(dim=1).sum() / batch_size
