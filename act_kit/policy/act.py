"""ACT, Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705), on states.

A transformer predicts the next K actions at once. In training a second encoder, of a conditional VAE, sees the actions
and compresses what the state does not tell (the demonstrator's style) into a latent z; in use z is 0, its prior mean.

Shapes: B batch, K chunk, A action, S state, D width, H heads, L sequence, Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.config import PolicyConfig
from act_kit.sim.tasks import ACTION_DIM

SEEN = (slice(0, 18), slice(36, 39))
"""Of a state: hand and gripper and both objects, and the goal. The previous frame between them stays out: with it a
policy learns to go on as it went before, which serves in the data and fails in the loop (de Haan et al. 2019,
arXiv:1905.11979)."""

_SEEN_DIM = 18 + 3


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says in training.

    Attributes:
        actions_BKA: The predicted chunk, from z of the CVAE.
        mean_BZ, logvar_BZ: The posterior of z.
    """

    actions_BKA: Tensor
    mean_BZ: Tensor
    logvar_BZ: Tensor


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return fixed positions (length, width), sines beside cosines (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], dim=1)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys carry positions and whose values do not, as in DETR."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
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
    """Two linear layers with a ReLU between."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(
            nn.Linear(config.width, config.feedforward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feedforward, config.width),
        )


class Residual(nn.Module):
    """Post-norm: ``LayerNorm(x + dropout(update))``."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
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
        looked = self.cross_attention(slots_BKD + queries_KD, memory_BLD + positions_LD, memory_BLD)
        slots_BKD = self.after_cross_attention(slots_BKD, looked)
        out: Tensor = self.after_feedforward(slots_BKD, self.feedforward(slots_BKD))
        return out


class ACT(nn.Module):
    """The model, on normalised states. Actions are in the units of the environment, [-1, 1]."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # CVAE encoder, in training only: [CLS, state, action_1 … action_K] -> mean and log variance of z
        self.cvae_cls = nn.Parameter(torch.randn(width) * 0.02)
        self.cvae_state = nn.Linear(_SEEN_DIM, width)
        self.cvae_action = nn.Linear(ACTION_DIM, width)
        self.cvae_encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.cvae_layers))
        self.cvae_latent = nn.Linear(width, 2 * config.latent_dim)
        # The posterior begins as the prior. Otherwise kl_weight * KL is a hundred times the L1 in the first steps, and
        # gradient clipping leaves the policy next to nothing to learn from.
        nn.init.zeros_(self.cvae_latent.weight)
        nn.init.zeros_(self.cvae_latent.bias)
        positions = sinusoidal_positions(2 + config.chunk_size, width)
        self.register_buffer("cvae_positions", positions, persistent=False)
        # Policy: [z, state] -> K slots. One token for hand and objects: what matters is where one is from the other.
        self.latent_in = nn.Linear(config.latent_dim, width)
        self.state_in = nn.Sequential(
            nn.Linear(_SEEN_DIM, config.feedforward), nn.ReLU(), nn.Linear(config.feedforward, width)
        )
        self.token_positions = nn.Parameter(torch.randn(2, width) * 0.02)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.queries = nn.Parameter(torch.randn(config.chunk_size, width))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.action_out = nn.Linear(width, ACTION_DIM)

    def forward(self, states_BS: Tensor, actions_BKA: Tensor, is_pad_BK: Tensor) -> Prediction:
        """Predict the chunk with z drawn from its posterior given the chunk: for training."""
        mean_BZ, logvar_BZ = self.encode_style(states_BS, actions_BKA, is_pad_BK)
        z_BZ = mean_BZ + torch.exp(0.5 * logvar_BZ) * torch.randn_like(mean_BZ)
        return Prediction(actions_BKA=self.decode(states_BS, z_BZ), mean_BZ=mean_BZ, logvar_BZ=logvar_BZ)

    def predict(self, states_BS: Tensor) -> Tensor:
        """Predict the chunk (B, K, A) with z = 0, the mean of its prior: for use. (Drawing z here is a known bug.)"""
        return self.decode(states_BS, states_BS.new_zeros(len(states_BS), self.config.latent_dim))

    def encode_style(self, states_BS: Tensor, actions_BKA: Tensor, is_pad_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of z, each (B, Z)."""
        cls_B1D = repeat(self.cvae_cls, "d -> b 1 d", b=len(states_BS))
        state_B1D = rearrange(self.cvae_state(self._seen(states_BS)), "b d -> b 1 d")
        tokens_BLD = torch.cat([cls_B1D, state_B1D, self.cvae_action(actions_BKA)], dim=1)
        is_pad_BL = F.pad(is_pad_BK, (2, 0), value=False)
        for layer in self.cvae_encoder:
            tokens_BLD = layer(tokens_BLD, self.cvae_positions, is_pad_BL)
        mean_BZ, logvar_BZ = self.cvae_latent(tokens_BLD[:, 0]).chunk(2, dim=1)
        return mean_BZ, logvar_BZ

    @staticmethod
    def _seen(states_BS: Tensor) -> Tensor:
        return torch.cat([states_BS[:, part] for part in SEEN], dim=1)

    def decode(self, states_BS: Tensor, z_BZ: Tensor) -> Tensor:
        """Predict the chunk (B, K, A) from normalised states and z."""
        memory_BLD = torch.stack([self.latent_in(z_BZ), self.state_in(self._seen(states_BS))], dim=1)
        for layer in self.encoder:
            memory_BLD = layer(memory_BLD, self.token_positions)
        slots_BKD = torch.zeros_like(self.queries).expand(len(states_BS), -1, -1)
        for layer in self.decoder:
            slots_BKD = layer(slots_BKD, self.queries, memory_BLD, self.token_positions)
        actions_BKA: Tensor = self.action_out(slots_BKD)
        return actions_BKA


def masked_l1(predicted_BKA: Tensor, actions_BKA: Tensor, is_pad_BK: Tensor) -> Tensor:
    """Mean absolute error over valid slots. (Over all slots, as the original has it, short episodes dilute it.)"""
    valid_BK1 = (~is_pad_BK)[..., None]
    error_BKA = (predicted_BKA - actions_BKA).abs() * valid_BK1
    return error_BKA.sum() / (valid_BK1.sum() * actions_BKA.shape[-1])


def kl_divergence(mean_BZ: Tensor, logvar_BZ: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1): summed over the latent, averaged over the batch."""
    return (-0.5 * (1 + logvar_BZ - mean_BZ.square() - logvar_BZ.exp())).sum(dim=1).mean()
