"""Transformer from an observation to the slots of a chunk: the part that the heads share.

The encoder sees a token of the head, one of the low-dimensional inputs and those of the images, and its output is the
memory. The decoder has one slot per action, and attends to the memory.

With ``policy.recognize_task``, a gate gives the probabilities of the tasks, and the task vector is the mean of the
tasks' vectors under them, in training as in use. Gate and policy are trained at once: the imitation loss through the
mixture, plus the cross-entropy of the gate. So the policy is trained on the mixtures that it is used with.

Shapes: B batch, K chunk, A action, N tasks, S state, V low-dimensional input, D width, L sequence, C cameras.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from act_kit.config.policy import TransformerConfig
from act_kit.metrics import Metric
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation
from act_kit.policies.keypoints import NUM_THINGS, KeypointEncoder, Places, place_loss
from act_kit.policies.state_features import (
    POINTS,
    RELATIVE_DIM,
    VELOCITY_DIM,
    positions,
    relative_positions,
    velocities,
)
from act_kit.policies.task_embedding import TASK_DIM, TaskEncoder, TaskGate
from act_kit.policies.transformer import make_layers
from act_kit.policies.vision import ImageEncoder, ResNet18, load_backbone
from act_kit.sim.tasks import ACTION_DIM

STATE_PARTS = (slice(0, 18), slice(36, 39))
"""Parts of the state that the policy sees: hand, gripper, both objects, and the goal.

The previous frame between them enters as velocities only (``policy.velocities``).
"""

PROPRIO_PARTS = (slice(0, 4),)
"""Proprioceptive part of the state: hand and gripper."""


class Embedded(NamedTuple):
    """Embedded observation.

    Attributes:
        vector_BV: Low-dimensional inputs.
        images: Tokens of images (B, L, D) with their positions (L, D), or None.
        places: Where objects and goal are, estimated from the images, or None.
    """

    vector_BV: Tensor
    images: tuple[Tensor, Tensor] | None
    places: Places | None


Memory = tuple[Tensor, Tensor]
"""Tokens that the decoder attends to (B, L, D), and their positions (L, D)."""


_POSITION_SCALE_M = 0.1
"""Unit of the estimated positions among the inputs."""


class ChunkTransformer(ChunkModel):
    """Base class of the heads: the inputs, the encoder and the decoder.

    ``train/task_loss`` is the cross-entropy of the gate; ``val/object_error`` and ``val/goal_error`` are the mean
    errors of the positions that are estimated from images, of the first object and the goal.

    Attributes:
        vector_dim: Number of low-dimensional inputs, V.
    """

    config: TransformerConfig
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("train/task_loss", "nats", "down"),
        Metric("val/object_error", "mm", "down"),
        Metric("val/goal_error", "mm", "down"),
    )

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_tasks: int = 1,
        task_embeddings_NE: Tensor | None = None,
        learns_token: bool = True,
    ) -> None:
        """Build the model, without the learned token of the encoder if the head passes its own."""
        super().__init__(config)
        width = config.dim_model
        self._parts = STATE_PARTS if config.sees_state else PROPRIO_PARTS
        num_visible = vector_dim = sum(part.stop - part.start for part in self._parts)
        self._sees_relative = config.relative_positions and config.sees_state
        vector_dim += RELATIVE_DIM if self._sees_relative else 0
        vector_dim += VELOCITY_DIM[config.sees_state] if config.velocities else 0
        self.task = TaskEncoder(num_tasks, task_embeddings_NE) if num_tasks > 1 else None
        vector_dim += TASK_DIM if self.task else 0
        self.gate = TaskGate(num_visible, num_tasks) if self.task and config.recognize_task else None
        self.keypoints = None
        if config.finds_keypoints:
            self.keypoints = KeypointEncoder(len(config.cameras), TASK_DIM if self.task else 0)
            vector_dim += 3 * NUM_THINGS + RELATIVE_DIM
        elif config.sees_images:
            self.vision = ImageEncoder(
                backbone=config.backbone,
                width=width,
                num_cameras=len(config.cameras),
                backbone_weights=config.backbone_weights,
            )
        self.vector_dim = vector_dim
        if learns_token:
            # Attention over the state token alone would have a single key and be linear.
            self.head_token = nn.Parameter(torch.randn(width) * 0.02)
        # Hand and objects share one token, because their relative positions matter.
        self.state_in = nn.Sequential(
            nn.Linear(vector_dim, config.dim_feedforward), nn.ReLU(), nn.Linear(config.dim_feedforward, width)
        )
        self.token_positions = nn.Parameter(torch.randn(2, width) * 0.02)
        self.encoder = make_layers(config, config.encoder_layers)
        self.queries = nn.Parameter(torch.randn(config.chunk_size, width))
        self.decoder = make_layers(config, config.decoder_layers, sees_memory=True)
        self.action_out = nn.Linear(width, ACTION_DIM)

    def load_pretrained(self) -> None:
        """Load the weights of ``backbone_weights``, if there are any."""
        if self.config.backbone_weights:
            assert isinstance(self.vision.net, ResNet18)
            load_backbone(self.vision.net, Path(self.config.backbone_weights))

    def embed(self, observation: Observation) -> Embedded:
        """Embed the observation."""
        parts = self._visible(observation.states_BS)
        if self._sees_relative:
            parts.append(relative_positions(positions(observation.raw_states_BS)))
        if self.config.velocities:
            parts.append(velocities(observation.raw_states_BS, objects=self.config.sees_state))
        task_BV = None
        if self.task is not None:
            task_BV = self._task_vectors(self.task, observation)
            parts.append(task_BV)
        images = places = None
        if self.keypoints is not None:
            assert observation.images_BCHW3 is not None
            places = self.keypoints(observation.images_BCHW3, task_BV)
            # Gradients of the actions would bend the estimates to what demonstrations have in common.
            estimated_BP = places.positions_BE3.detach().flatten(1)
            hand_B3 = observation.raw_states_BS[:, POINTS["hand"]]
            relative_BR = relative_positions(torch.cat([hand_B3, estimated_BP], dim=1))
            parts += [estimated_BP / _POSITION_SCALE_M, relative_BR]
        elif self.config.sees_images:
            images = self.vision(observation.images_BCHW3)
        return Embedded(torch.cat(parts, dim=1), images, places)

    def position_loss(self, embedded: Embedded, batch: ChunkBatch) -> Tensor | float:
        """Return the batch's share of the errors of places and positions, times their weight; 0 without estimates.

        The simulator knows the positions in training; in use nothing but the images tells the policy.
        """
        if embedded.places is None:
            return 0.0
        assert batch.cameras_C34 is not None, "keypoints are learned with the matrices of the cameras"
        true_BE3 = _true_positions(batch.observation)
        entropy_B, error_B = place_loss(embedded.places, true_BE3, batch.cameras_C34)
        return self.config.position_weight * (entropy_B + error_B).sum() / batch.batch_size

    def predict(self, observation: Observation) -> Tensor:
        """Predict the chunk (B, K, A)."""
        return self.predict_embedded(self.embed(observation))

    def predict_embedded(self, embedded: Embedded) -> Tensor:
        """Predict the chunk (B, K, A) for an embedded observation."""
        raise NotImplementedError

    def compute_validation_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the L1 of the predictions and, with keypoints, the errors of the positions."""
        embedded = self.embed(batch.observation)
        return {"l1": batch.l1(self.predict_embedded(embedded)), **self.position_errors(embedded, batch)}

    def position_errors(self, embedded: Embedded, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the mean errors of the estimated positions by the name of their metric; none without estimates."""
        if embedded.places is None:
            return {}
        errors_BE = (embedded.places.positions_BE3 - _true_positions(batch.observation)).norm(dim=2)
        object_mm, _, goal_mm = 1000 * errors_BE.sum(dim=0) / batch.batch_size
        return {"object_error": object_mm, "goal_error": goal_mm}

    def _visible(self, states_BS: Tensor) -> list[Tensor]:
        return [states_BS[:, part] for part in self._parts]

    def _task_vectors(self, task: TaskEncoder, observation: Observation) -> Tensor:
        if self.gate is None:
            vectors: Tensor = task(observation.tasks_B)
            return vectors
        assert observation.first_states_BS is not None
        weights_BN = self.recognize_task(observation.first_states_BS)
        mixed: Tensor = weights_BN @ task(torch.arange(weights_BN.shape[1], device=weights_BN.device))
        return mixed

    @property
    def recognizes_task(self) -> bool:
        """True with a gate."""
        return self.gate is not None

    def recognize_task(self, first_states_BS: Tensor) -> Tensor:
        """Return the probabilities of the tasks (B, N)."""
        return self._log_probabilities(first_states_BS).exp()

    def _log_probabilities(self, first_states_BS: Tensor) -> Tensor:
        assert self.gate is not None
        log_BN: Tensor = self.gate(torch.cat(self._visible(first_states_BS), dim=1))
        return log_BN

    def forward(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the losses of the head, with the loss of the gate."""
        losses = super().forward(batch)
        if self.gate is None:
            return losses
        assert batch.observation.first_states_BS is not None
        log_BN = self._log_probabilities(batch.observation.first_states_BS)
        task_loss = F.nll_loss(log_BN, batch.observation.tasks_B, reduction="sum") / batch.batch_size
        return {**losses, "loss": losses["loss"] + task_loss, "task_loss": task_loss}

    def encode(self, embedded: Embedded, token_BD: Tensor | None = None) -> Memory:
        """Return the memory of an embedded observation; ``token_BD`` takes the place of the learned token."""
        vector_BV, images, _ = embedded
        if token_BD is None:
            token_BD = repeat(self.head_token, "d -> b d", b=len(vector_BV))
        memory_BLD = torch.stack([token_BD, self.state_in(vector_BV)], dim=1)
        positions_LD: Tensor = self.token_positions
        if images is not None:
            memory_BLD = torch.cat([memory_BLD, images[0]], dim=1)
            positions_LD = torch.cat([positions_LD, images[1]])
        for layer in self.encoder:
            memory_BLD = layer(memory_BLD, positions_LD)
        return memory_BLD, positions_LD

    def decode_slots(self, slots_BKD: Tensor, memory: Memory) -> Tensor:
        """Return the chunk (B, K, A) of slots; one row of slots serves the memory of every row."""
        for layer in self.decoder:
            slots_BKD = layer(slots_BKD, self.queries, memory=memory)
        actions_BKA: Tensor = self.action_out(slots_BKD)
        return actions_BKA


def _true_positions(observation: Observation) -> Tensor:
    """Return where both objects and the goal are, meters, (B, 3, 3)."""
    return rearrange(positions(observation.raw_states_BS)[:, 3:], "b (e xyz) -> b e xyz", xyz=3)
