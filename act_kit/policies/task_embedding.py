"""Task embedding: the vector that conditions a multi-task policy on its task.

It is learned, or projected from a given embedding per task (for example of the task's sentence) that a file holds. A
policy that is not told its task mixes the vectors of all tasks by the probabilities of a gate.

Shapes: N tasks, B batch, E embedding, V gate inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from act_kit.errors import ConfigError, DamagedFileError
from act_kit.policies.weights import load_tensors

TASK_DIM = 32
"""Width of the task vector."""

_GATE_WIDTH = 64
"""Width of the hidden layer of the gate."""


class TaskEncoder(nn.Module):
    """Map a task index to its vector."""

    given_NE: Tensor | None

    def __init__(self, num_tasks: int, given_NE: Tensor | None = None) -> None:
        """Learn a vector per task, or a projection of the fixed embeddings ``given_NE``, float32."""
        super().__init__()
        self.register_buffer("given_NE", given_NE)
        if given_NE is None:
            self.learned: nn.Module = nn.Embedding(num_tasks, TASK_DIM)
        else:
            self.learned = nn.Linear(given_NE.shape[1], TASK_DIM)

    def forward(self, tasks_B: Tensor) -> Tensor:
        """Return the vectors (B, TASK_DIM) of task indices int64 (B,)."""
        vectors: Tensor = self.learned(tasks_B if self.given_NE is None else self.given_NE[tasks_B])
        return vectors


class TaskGate(nn.Module):
    """Recognize the task from the first state of an episode."""

    def __init__(self, num_inputs: int, num_tasks: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(num_inputs, _GATE_WIDTH), nn.ReLU(), nn.Linear(_GATE_WIDTH, num_tasks))

    def forward(self, first_states_BV: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of the tasks, float32 (B, N), given normalized first states."""
        log_BN: Tensor = self.net(first_states_BV).float().log_softmax(dim=1)
        return log_BN


def load_task_embeddings(path: Path, tasks: Sequence[str]) -> Tensor:
    """Read the embeddings of ``tasks`` from a safetensors file, which holds one vector (E,) per task name.

    Returns:
        float32 (N, E), each vector standardized to zero mean and unit variance over its entries.

    Raises:
        ConfigError: The file is missing or not a safetensors file, lacks a task, or its vectors differ in width.
    """
    try:
        vectors = load_tensors(path)
    except (OSError, DamagedFileError) as error:
        raise ConfigError(f"policy.task_embeddings={path}: expected a readable safetensors file ({error}).") from error
    for task in tasks:
        if task not in vectors:
            known = ", ".join(sorted(vectors)[:3])
            raise ConfigError(f"policy.task_embeddings={path} has no vector named {task}; it has {known}.")
        if vectors[task].shape != vectors[tasks[0]].shape or vectors[task].ndim != 1:
            raise ConfigError(f"policy.task_embeddings={path}: expected one vector of the same width per task.")
    stacked_NE = torch.stack([vectors[task].float() for task in tasks])
    if not torch.isfinite(stacked_NE).all() or stacked_NE.shape[1] < 2:
        raise ConfigError(f"policy.task_embeddings={path}: expected at least two finite numbers per task.")
    return (stacked_NE - stacked_NE.mean(dim=1, keepdim=True)) / stacked_NE.std(dim=1, keepdim=True).clamp(min=1e-6)
