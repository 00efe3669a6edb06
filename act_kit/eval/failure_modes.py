"""Why an episode failed, as far as its motion shows: one label per failure, the first that fits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from act_kit.eval.stages import GRASPING, HELD_STEPS, held, near
from act_kit.rollouts.rollout import Outcome
from act_kit.sim.distance import norms

Label = Literal["crashed", "frozen", "oscillating", "never reached", "lost the grasp", "saturated", "other"]

FROZEN_M = 0.02
"""A hand that stays in a box this wide, high and deep hardly moves. From its first place it has 5 cm or more to go."""

OSCILLATING_M = 0.25
"""In the second half of the episode the hand travels at least this far (a tenth of what it can) ..."""

OSCILLATING_TIMES = 10
"""... and so many times the diagonal of the box it stays in: five times to and fro. Random actions make 3 to 4."""

SATURATED = 0.5
"""More than this part of the steps ask for the greatest speed along some axis."""

LABELS: dict[Label, str] = {
    "crashed": "the simulation broke down",
    "frozen": f"the hand stayed within {100 * FROZEN_M:.0f} cm in every direction",
    "oscillating": "in the second half the hand went to and fro: at least "
    f"{100 * OSCILLATING_M:.0f} cm, {OSCILLATING_TIMES} times the diagonal of the box it stayed in",
    "never reached": "the hand never came near the object (of reach tasks: the goal)",
    "lost the grasp": "the object was held in the air, and was not when the episode ended",
    "saturated": f"more than {100 * SATURATED:.0f} % of the actions were at a bound along some axis",
    "other": "none of these",
}
"""What each means; an episode has the first that fits."""


def failure_mode(outcome: Outcome) -> Label | None:
    """Say why an episode failed; None if it succeeded."""
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
        in_the_air = held(outcome)
        if in_the_air.sum() >= HELD_STEPS and not in_the_air[-1]:
            return "lost the grasp"
    if (np.abs(outcome.actions[:, :3]) >= 1).any(axis=1).mean() > SATURATED:
        return "saturated"
    return "other"


def _oscillates(hand: np.ndarray) -> bool:
    travelled = norms(np.diff(hand, axis=0)).sum()
    return bool(travelled >= max(OSCILLATING_M, OSCILLATING_TIMES * np.linalg.norm(np.ptp(hand, axis=0))))
