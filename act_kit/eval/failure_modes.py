"""Failure modes of episodes, derived from their motion: each failure has the first mode that fits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from act_kit.eval.stages import GRASPING, HELD_STEPS, held, near
from act_kit.rollouts.episode import Episode
from act_kit.sim.distance import norms

FailureMode = Literal["crashed", "frozen", "oscillating", "never reached", "lost the grasp", "saturated", "other"]

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
    "lost the grasp": "the object was lifted, but not held when the episode ended",
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
    if not near(outcome).any():
        return "never reached"
    if outcome.init_state.task in GRASPING:
        is_held = held(outcome)
        if is_held.sum() >= HELD_STEPS and not is_held[-1]:
            return "lost the grasp"
    if (np.abs(outcome.executed_action[:, :3]) >= 1).any(axis=1).mean() > SATURATED:
        return "saturated"
    return "other"


def _oscillates(hand: np.ndarray) -> bool:
    path_length = norms(np.diff(hand, axis=0)).sum()
    return bool(path_length >= max(OSCILLATING_M, OSCILLATING_TIMES * np.linalg.norm(np.ptp(hand, axis=0))))
