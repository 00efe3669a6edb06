"""Simulate a recorded episode again: what its actions lead to from its initial state, here and now."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.sim.simulator import Simulator

# Shapes: T steps, A action, S state, P physics.

ROUNDING = 1e-12
"""A difference that is none: BLAS rounds a norm (the gripper's opening, a distance) differently on another processor.

Between the kernels for AVX2 and for AVX-512, states and distances differ by 2.2e-16 at most, and the physics not at all
(BENCHMARKS.md).
"""


@dataclass(frozen=True, kw_only=True)
class Resimulation:
    """What T actions lead to.

    Attributes:
        state: float64 (T + 1, S): seen before each action, and after the last.
        steps: The other fields of :class:`~act_kit.rollouts.episode.Episode` that follow, (T, …), by their names.
    """

    state: np.ndarray
    steps: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.state) - 1

    def of(self, name: str) -> np.ndarray:
        """Return a field as an episode records it, (T, …)."""
        return self.state[:-1] if name == "state" else self.steps[name]


def first_difference(recorded: np.ndarray, expected: np.ndarray) -> int | None:
    """Return the first row in which two (T, …) differ by more than :data:`ROUNDING`, or by NaN; None if none does."""
    if recorded.shape != expected.shape:
        return 0
    different = recorded != expected
    if recorded.dtype != bool:
        different = ~(np.abs(recorded - expected) <= ROUNDING)
    rows = different.reshape(len(recorded), -1).any(axis=1)
    return int(np.argmax(rows)) if rows.any() else None


def resimulate(simulator: Simulator, episode: Episode, actions: np.ndarray) -> Resimulation:
    """Execute ``actions``, float32 (T, A), from the episode's initial state; at most as many as the horizon allows.

    Raises:
        StartError: The task never has this initial state.
    """
    states = [simulator.reset(episode.init_state)]
    rewards = episode.reward is not None
    physics, segments = [], []
    for action in actions[: simulator.steps_left]:
        physics.append(simulator.physics())
        segments.append(simulator.step_chunk(action[None], rewards=rewards))
        states.append(segments[-1].state[0])
    steps = {"physics": np.stack(physics)}
    for name in ("success", "distance", "reward") if rewards else ("success", "distance"):
        steps[name] = np.concatenate([getattr(step_batch, name) for step_batch in segments])
    return Resimulation(state=np.stack(states), steps=steps)
