"""Transformer that sees a noisy chunk and its time besides the observation: what the heads flow and mip share.

Shapes: B batch, K chunk, A action, D width, F frequencies.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from act_kit.config.policy import TransformerConfig
from act_kit.policies.chunk_transformer import ChunkTransformer, Memory
from act_kit.sim.tasks import ACTION_DIM

_SHORTEST_PERIOD = 4e-3
_LONGEST_PERIOD = 4.0
"""Periods of the sines and cosines that time, in [0, 1], is embedded with (as in π0)."""


class Denoiser(ChunkTransformer):
    """Base class of heads whose decoder begins with noisy actions instead of empty slots.

    The time is one more token of the memory, so the encoder runs once for all steps of the denoising.
    """

    time_rates_F: Tensor

    def __init__(
        self, config: TransformerConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None
    ) -> None:
        super().__init__(config, num_tasks=num_tasks, task_embeddings_NE=task_embeddings_NE)
        width = config.dim_model
        self.action_in = nn.Linear(ACTION_DIM, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.time_position = nn.Parameter(torch.randn(1, width) * 0.02)
        periods = torch.logspace(math.log10(_SHORTEST_PERIOD), math.log10(_LONGEST_PERIOD), width // 2)
        self.register_buffer("time_rates_F", 2 * math.pi / periods, persistent=False)

    def draw_noise(self, batch_size: int, device: torch.device) -> Tensor:
        """Draw the noise of a batch, (B, K * A + 1): a standard normal chunk, and a number uniform in [0, 1)."""
        chunk = torch.randn(batch_size, self.config.chunk_size * ACTION_DIM, device=device)
        return torch.cat([chunk, torch.rand(batch_size, 1, device=device)], dim=1)

    @staticmethod
    def split_noise(noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunks (B, K, A) and the uniform numbers (B,) of :meth:`draw_noise`."""
        return rearrange(noise[:, :-1], "b (k a) -> b k a", a=ACTION_DIM), noise[:, -1]

    def denoise(self, memory: Memory, noisy_BKA: Tensor, time_B: Tensor) -> Tensor:
        """Return the output (B, K, A) for noisy chunks at their times in [0, 1], from noise to actions."""
        memory_BLD, positions_LD = memory
        phases_BF = time_B[:, None] * self.time_rates_F
        time_BD = self.time_in(torch.cat([phases_BF.sin(), phases_BF.cos()], dim=1))
        memory_BLD = torch.cat([memory_BLD, time_BD[:, None]], dim=1)
        return self.decode_slots(self.action_in(noisy_BKA), (memory_BLD, torch.cat([positions_LD, self.time_position])))
