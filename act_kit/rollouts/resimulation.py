"""Resimulation of a recorded episode: execution of its actions from its initial state with this installation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.sim.simulator import Simulator

# Shapes: T steps, A action, S state.

ROUNDING = 1e-12
"""Maximum difference due to rounding: BLAS rounds norms (gripper opening, distance) differently on other processors.

Between the kernels for AVX2 and for AVX-512, states and distances differ by at most 2.2e-16, and the physics state does
not differ (BENCHMARKS.md).
"""


@dataclass(frozen=True, kw_only=True)
class Resimulation:
    """Results of T actions.

    Attributes:
        state: float64 (T + 1, S): the state before each action, and after the last.
        steps: Other resimulated fields of :class:`~act_kit.rollouts.episode.Episode`, (T, …), by name.
    """

    state: np.ndarray
    steps: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.state) - 1

    def of(self, name: str) -> np.ndarray:
        """Return a field (T, …), aligned as in an episode."""
        return self.state[:-1] if name == "state" else self.steps[name]


def first_difference(recorded: np.ndarray, expected: np.ndarray) -> int | None:
    """Return the first row in which two arrays (T, …) differ by more than :data:`ROUNDING`, or in NaN, or None."""
    if recorded.shape != expected.shape:
        return 0
    different = recorded != expected
    if recorded.dtype != bool:
        different = ~(np.abs(recorded - expected) <= ROUNDING)
    rows = different.reshape(len(recorded), -1).any(axis=1)
    return int(np.argmax(rows)) if rows.any() else None


def resimulate(simulator: Simulator, episode: Episode, actions: np.ndarray) -> Resimulation:
    """Execute ``actions``, float32 (T, A), from the episode's initial state, up to the horizon.

    Raises:
        InitialStateError: The task cannot be reset to this initial state.
    """
    states = [simulator.reset(episode.init_state)]
    rewards = episode.reward is not None
    physics, step_batches = [], []
    for action in actions[: simulator.steps_left]:
        physics.append(simulator.physics())
        step_batches.append(simulator.step_chunk(action[None], rewards=rewards))
        states.append(step_batches[-1].state[0])
    steps = {"physics": np.stack(physics)}
    for name in ("success", "distance", "reward") if rewards else ("success", "distance"):
        steps[name] = np.concatenate([getattr(step_batch, name) for step_batch in step_batches])
    return Resimulation(state=np.stack(states), steps=steps)
