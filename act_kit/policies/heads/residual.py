"""A frozen policy and a small network that corrects its next actions: what ``act finetune`` trains.

The corrected action is base + scale * tanh(f(inputs of the base, base)). The last layer of f begins with zeros, so
training begins exactly with the base policy.

Shapes: B batch, K chunk, A action, F inputs of the correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act_kit.config.policy import ACTConfig, PolicyConfig, TransformerConfig
from act_kit.errors import TrainingError
from act_kit.options import option, require
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, make_model, register_model
from act_kit.policies.chunk_transformer import ChunkTransformer
from act_kit.sim.tasks import ACTION_DIM

_ANY_BASE = ACTConfig()


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(PolicyConfig):
    """Options of a corrected policy.

    Attributes:
        base: Options of the policy that is corrected; the options of inputs and chunk must be the same.
        num_actions: Number of actions of a chunk that are corrected, the first ones: as many as are executed.
        scale: Largest correction of a number of an action.
        width: Width of both hidden layers of the correction.
    """

    name: str = "residual"
    base: TransformerConfig = _ANY_BASE
    num_actions: int = option(2, min=1, max=500)
    scale: float = option(0.2, above=0, max=2)
    width: int = option(256, min=1, max=8192)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inputs", "cameras", "chunk_size"):
            own, of_base = getattr(self, name), getattr(self.base, name)
            require(own == of_base, f"policy.{name}={own}: expected that of the base policy, {of_base}.")
        require(
            self.num_actions <= self.chunk_size,
            f"policy.num_actions={self.num_actions}: expected at most policy.chunk_size={self.chunk_size}.",
        )


@register_model(ResidualConfig)
class Residual(ChunkModel):
    """A frozen policy with a correction.

    Attributes:
        base: The policy.
        num_inputs: Number of inputs of the correction, F.
    """

    config: ResidualConfig

    def __init__(self, config: ResidualConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        super().__init__(config)
        base = make_model(config.base, num_tasks=num_tasks, task_embeddings_NE=task_embeddings_NE)
        assert isinstance(base, ChunkTransformer)
        self.base = base.requires_grad_(False)
        size = config.num_actions * ACTION_DIM
        self.num_inputs = base.vector_dim + size
        last = nn.Linear(config.width, size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(
            nn.Linear(self.num_inputs, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            last,
        )

    @property
    def recognizes_task(self) -> bool:
        """True if the base recognizes its task."""
        return self.base.recognizes_task

    def recognize_task(self, first_states_BS: Tensor) -> Tensor:
        """Return the probabilities of the tasks (B, N) that the base recognizes."""
        return self.base.recognize_task(first_states_BS)

    @torch.no_grad()
    def inputs_of(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Return the inputs of the correction (B, F) and the chunk of the base (B, K, A)."""
        embedded = self.base.embed(observation)
        base_BKA = self.base.predict_embedded(embedded)
        return torch.cat([embedded.vector_BV, base_BKA[:, : self.config.num_actions].flatten(1)], dim=1), base_BKA

    def correct(self, inputs_BF: Tensor) -> Tensor:
        """Return the corrected next actions (B, E, A), E = ``num_actions``, before clipping."""
        size = self.config.num_actions * ACTION_DIM
        next_BD = inputs_BF[:, -size:] + self.config.scale * torch.tanh(self.correction(inputs_BF))
        return next_BD.reshape(-1, self.config.num_actions, ACTION_DIM)

    def predict(self, observation: Observation) -> Tensor:
        """Predict the chunk of the base (B, K, A) with corrected next actions."""
        inputs_BF, base_BKA = self.inputs_of(observation)
        return torch.cat([self.correct(inputs_BF), base_BKA[:, self.config.num_actions :]], dim=1)

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Raise :class:`TrainingError`: demonstrations are what the base was trained with."""
        raise TrainingError("A correction is trained by rollouts. Fix: act finetune RUN")
