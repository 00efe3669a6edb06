"""Failure modes of episodes, derived from their motion: each failure has the first mode that fits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from act_kit.eval.stages import GRASPING, HELD_STEPS, REACHING, held, moved, near
from act_kit.rollouts.episode import Episode
from act_kit.sim.distance import norms

FailureMode = Literal[
    "crashed",
    "frozen",
    "oscillating",
    "never reached",
    "never grasped",
    "lost the grasp",
    "never moved",
    "lost the object",
    "saturated",
    "other",
]

FROZEN_M = 0.02
"""Largest side of the box that a frozen hand stays in. Every task requires it to move 5 cm or more."""

OSCILLATING_M = 0.25
"""Minimum path length of the hand in the second half of the episode, a tenth of the maximum possible."""

OSCILLATING_TIMES = 10
"""Minimum ratio of that path length to the diagonal of the box the hand stays in: five back-and-forth movements.

Random actions reach 3 to 4."""

SATURATED = 0.5
"""Minimum fraction of the steps that command the maximum speed along some axis."""

FAILURE_MODES: dict[FailureMode, str] = {
    "crashed": "the simulation or the server of the policy failed",
    "frozen": f"the hand stayed within {100 * FROZEN_M:.0f} cm in every direction",
    "oscillating": "in the second half the hand moved back and forth: at least "
    f"{100 * OSCILLATING_M:.0f} cm, {OSCILLATING_TIMES} times the diagonal of the box it stayed in",
    "never reached": "the hand never came near the object (in reach tasks: the goal)",
    "never grasped": "the hand came near an object that it must hold, but never lifted it",
    "lost the grasp": "the object was lifted, but not held when the episode ended",
    "never moved": "the hand came near an object that it must move, but never moved it",
    "lost the object": "the object was moved, but the hand was not near it when the episode ended",
    "saturated": f"more than {100 * SATURATED:.0f} % of the actions were at a bound along some axis",
    "other": "none of these",
}
"""Meaning of each failure mode; a failed episode has the first that fits."""


def failure_mode(outcome: Episode) -> FailureMode | None:
    """Return the failure mode of an episode; None if it succeeded."""
    if outcome.success_once:
        return None
    if outcome.crash is not None:
        return "crashed"
    hand = outcome.path[1:, :3]
    if np.ptp(hand, axis=0).max() <= FROZEN_M:
        return "frozen"
    if _oscillates(hand[len(hand) // 2 :]):
        return "oscillating"
    lost = _lost(outcome)
    if lost is not None:
        return lost
    if (np.abs(outcome.executed_action[:, :3]) >= 1).any(axis=1).mean() > SATURATED:
        return "saturated"
    return "other"


def _lost(outcome: Episode) -> FailureMode | None:
    """Return in what the hand and the object were apart; None if the hand had the object at the end."""
    is_near, task = near(outcome), outcome.init_state.task
    if not is_near.any():
        return "never reached"
    if task in GRASPING:
        is_held = held(outcome)
        if is_held.sum() < HELD_STEPS:
            return "never grasped"
        return None if is_held[-1] else "lost the grasp"
    if task in REACHING:
        return None
    if not moved(outcome).any():
        return "never moved"
    return None if is_near[-1] else "lost the object"


def _oscillates(hand: np.ndarray) -> bool:
    path_length = norms(np.diff(hand, axis=0)).sum()
    return bool(path_length >= max(OSCILLATING_M, OSCILLATING_TIMES * np.linalg.norm(np.ptp(hand, axis=0))))
