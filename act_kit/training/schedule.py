"""Schedule of a training run: its number of steps, the learning rate at each, and when the policy is rolled out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore

_NUM_VALIDATIONS = 10
"""Default number of validations."""


def num_chunks(stores: Sequence[EpisodeStore]) -> int:
    """Return the number of chunks in datasets: one begins at each step."""
    return sum(store.num_steps for store in stores)


def choose_steps(chunks: int, steps_per_root: float) -> int:
    """Return the default number of gradient steps for a number of chunks.

    With 75, the default of policies of states, 7,200 steps for 50 demonstrations of a task of average length, 51,000
    for 50 of each of the 50 tasks.
    """
    return max(100, math.ceil(steps_per_root * math.sqrt(chunks) / 100) * 100)


def with_schedule(config: TrainConfig, chunks: int) -> TrainConfig:
    """Return the options, with the numbers of steps that are 0 chosen for a number of chunks."""
    steps = config.trainer.steps or choose_steps(chunks, config.trainer.steps_per_root)
    validate_every = config.trainer.validate_every or math.ceil(steps / _NUM_VALIDATIONS)
    return replace(config, trainer=replace(config.trainer, steps=steps, validate_every=validate_every))


def describe_steps(config: TrainConfig, chunks: int) -> str:
    """Describe the number of steps and, if it is the default one, the reason for it."""
    trainer = config.trainer
    passes = trainer.steps * trainer.batch_size / chunks
    text = f"{trainer.steps} steps of {trainer.batch_size} chunks, {passes:.1f} passes over the {chunks} in the data"
    if trainer.steps == choose_steps(chunks, trainer.steps_per_root):
        by_default = f"by default {trainer.steps_per_root:g} times the square root of their number"
        text += f" ({by_default}; --steps N for another number)"
    return text


def learning_rate(step: int, *, steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate: linear warm-up for a fraction ``warmup`` of the steps, then cosine decay to 0.

    ``step`` counts from 0.
    """
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def rollout_steps(steps: int, rollouts: int) -> list[int]:
    """Return evenly spaced steps in the second half of training, when policies begin to work, including the last."""
    return sorted({round(steps * (0.5 + 0.5 * (i + 1) / rollouts)) for i in range(rollouts)})
