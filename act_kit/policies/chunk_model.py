"""Chunk models: what predicts a chunk of actions from an observation, behind one interface.

A model has its own class of options, a subclass of :class:`~act_kit.config.policy.PolicyConfig`, and is found by it.
Training, checkpoints, evaluation and the doctor know no more of a model than :class:`ChunkModel`.

Shapes: B batch, K chunk, A action, S state, C cameras, N tasks, E embedding, H and W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from act_kit.config.policy import PolicyConfig
from act_kit.metrics import METRICS, Metric


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Input of a model, on its device.

    Attributes:
        states_BS: float32, normalized.
        raw_states_BS: float32, as Meta-World returns them.
        tasks_B: int64, index of each row's task among the policy's tasks.
        images_BCHW3: uint8, or None for a policy without images.
        first_states_BS: float32, normalized: the first state of each row's episode; None for a model that does not
            recognize its task.
    """

    states_BS: Tensor
    raw_states_BS: Tensor
    tasks_B: Tensor
    images_BCHW3: Tensor | None
    first_states_BS: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkBatch:
    """Training samples: a whole batch, or the part of it that is computed at once.

    Attributes:
        observation: Observations.
        actions_BKA: float32, the actions to imitate.
        is_pad_BK: bool, true beyond the end of the episode.
        num_valid: Number of actions of the whole batch that are not padding, int64 ().
        batch_size: Number of samples of the whole batch.
        noise: These samples' rows of :meth:`ChunkModel.draw_noise`; None if the model draws its noise itself.
        cameras_C34: Matrices of the cameras, float32, for keypoints; see :func:`act_kit.sim.cameras.camera_matrices`.
    """

    observation: Observation
    actions_BKA: Tensor
    is_pad_BK: Tensor
    num_valid: Tensor
    batch_size: int
    noise: Tensor | None = None
    cameras_C34: Tensor | None = None

    def l1(self, predicted_BKA: Tensor) -> Tensor:
        """Return the sum of absolute errors of valid actions, divided by the whole batch's number of valid entries.

        For a part of a batch this is its share of the batch's mean. (The original of ACT averages over all actions, so
        short episodes dilute the loss.)
        """
        return self.mean((predicted_BKA.float() - self.actions_BKA).abs())

    def mean(self, error_BKA: Tensor) -> Tensor:
        """Return the sum of the errors of valid actions, divided by the whole batch's number of valid entries."""
        valid_BKA = error_BKA * (~self.is_pad_BK)[..., None]
        return valid_BKA.sum() / (self.num_valid * self.actions_BKA.shape[-1])


class ChunkModel(nn.Module):
    """Base class of the models. Actions are in the units of the environment, [-1, 1].

    Attributes:
        config: Options.
        options: Class of the options, under which the model is registered.
        metrics: Losses that the model declares besides ``train/loss``, ``train/l1`` and ``val/l1``.
    """

    config: PolicyConfig
    options: ClassVar[type[PolicyConfig]]
    metrics: ClassVar[tuple[Metric, ...]] = ()

    def __init__(self, config: PolicyConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        """Build the model with random weights.

        ``task_embeddings_NE``, float32, are given instead of learned; the model keeps them in ``task.given_NE``.
        """
        super().__init__()
        self.config = config

    @property
    def recognizes_task(self) -> bool:
        """True if the model recognizes its task from the first state of the episode, and ignores the task it is told.

        In training it may read it, as what to recognize.
        """
        return False

    def recognize_task(self, first_states_BS: Tensor) -> Tensor:
        """Return the probabilities of the tasks (B, N), given the normalized first states of the episodes."""
        raise NotImplementedError

    def predict(self, observation: Observation) -> Tensor:
        """Predict chunks (B, K, A) at inference. The same observation must give the same chunk."""
        raise NotImplementedError

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the training losses by name: ``loss``, which is minimized, and others to record as ``train/<name>``.

        Each is the share of the whole batch's loss, so that the shares of the parts of a batch add up to it.
        """
        raise NotImplementedError

    def compute_validation_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the losses to record as ``val/<name>``: ``l1`` of the predictions at inference, and others."""
        return {"l1": batch.l1(self.predict(batch.observation))}

    @property
    def training_l1(self) -> str:
        """Name of the training loss that is an L1 in action units.

        It is shown, and a run in which it grows far beyond the range of actions is stopped.
        """
        return "l1"

    def draw_noise(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Draw the noise of a whole batch, one row per sample, for a model that needs noise in training."""
        return None

    def load_pretrained(self) -> None:
        """Load the pretrained weights that the options name, before training; a checkpoint contains its own.

        Raises:
            CheckpointError: A file is missing, damaged or does not fit.
        """

    def forward(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the losses; through the module call, so that DistributedDataParallel works."""
        return self.compute_loss(batch)


Model = TypeVar("Model", bound=type[ChunkModel])

_MODELS: dict[str, type[ChunkModel]] = {}
"""Models by the name in their options."""


def register_model(config: type[PolicyConfig]) -> Callable[[Model], Model]:
    """Register the decorated class as the model of a class of options, and declare its metrics."""

    def register(model: Model) -> Model:
        _MODELS[config.name] = model
        model.options = config
        for parent in model.__mro__:  # a head that declares metrics keeps those of its base class
            METRICS.update({metric.name: metric for metric in vars(parent).get("metrics", ())})
        return model

    return register


def make_model(config: PolicyConfig, *, num_tasks: int, task_embeddings_NE: Tensor | None = None) -> ChunkModel:
    """Build the model of ``config`` with random weights."""
    return _MODELS[config.name](config, num_tasks=num_tasks, task_embeddings_NE=task_embeddings_NE)
