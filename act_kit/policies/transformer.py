"""Layers of a transformer with post-norm, as in DETR and ACT.

Shapes: B batch, L sequence, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from act_kit.config.policy import TransformerConfig


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return fixed positions (length, width), sines then cosines (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], dim=1)


class Attention(nn.Module):
    """Multi-head attention with a residual connection and post-norm."""

    def __init__(self, config: TransformerConfig) -> None:
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

    def __init__(self, config: TransformerConfig, *, sees_memory: bool) -> None:
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


def make_layers(config: TransformerConfig, num: int, *, sees_memory: bool = False) -> nn.ModuleList:
    """Return a stack of layers; those of a decoder see the memory."""
    return nn.ModuleList(TransformerLayer(config, sees_memory=sees_memory) for _ in range(num))
