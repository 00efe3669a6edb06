"""Resimulation of a recorded episode: execution of its actions from its initial state with this installation."""

from __future__ import annotations

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import EpisodeRecorder
from act_kit.sim.simulator import Simulator

ROUNDING = 1e-12
"""Maximum difference due to rounding: BLAS rounds norms (gripper opening, distance) differently on other processors.

Between the kernels for AVX2 and for AVX-512, states and distances differ by at most 2.2e-16, and the physics state does
not differ (BENCHMARKS.md).
"""

RESIMULATED = ("state", "physics", "success", "distance", "reward")
"""Fields of an episode that its initial state and its executed actions determine."""


def first_difference(recorded: np.ndarray, expected: np.ndarray) -> int | None:
    """Return the first row in which two arrays (T, …) differ by more than :data:`ROUNDING`, or in NaN, or None."""
    if recorded.shape != expected.shape:
        return 0
    different = recorded != expected
    if recorded.dtype != bool:
        different = ~(np.abs(recorded - expected) <= ROUNDING)
    rows = different.reshape(len(recorded), -1).any(axis=1)
    return int(np.argmax(rows)) if rows.any() else None


def resimulate(simulator: Simulator, episode: Episode, actions: np.ndarray) -> Episode:
    """Execute ``actions``, float32 (T, 4), from the episode's initial state, up to the horizon.

    Rewards are computed if ``episode`` has them.

    Raises:
        InitialStateError: The task cannot be reset to this initial state.
    """
    recorder = EpisodeRecorder(episode.init_state, source="resimulation")
    recorder.begin(simulator.reset(episode.init_state), simulator.distance)
    recorder.plan(actions, actions)
    recorder.record(simulator.step_chunk(actions, rewards=episode.reward is not None, physics=True))
    return recorder.episode()
