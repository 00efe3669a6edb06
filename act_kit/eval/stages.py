"""Stages of a task that an episode reaches: near the object, moved or grasped, half way, success.

Meta-World's own ``info["near_object"]`` and ``info["grasp_success"]`` are unsuitable: one is a shaped reward in five
tasks and constantly 0 in two, the other is constantly 1 in ten and 0 in five, and in seven true for an open gripper.
The stages here are computed from data of every episode: the positions of hand and object, and act_kit's distance. The
radii were measured on the scripted experts, and the tests require each expert to reach every stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.sim.distance import norms
from act_kit.sim.tasks import get_task

Stage = Literal["near", "moved", "grasped", "half way", "success"]

NEAR_M = 0.08
"""Largest distance at which the hand is near the object; the fingertips are 0.045 m below the hand."""

_NEAR_M = {
    "button-press-v3": 0.11,
    "coffee-button-v3": 0.11,
    "dial-turn-v3": 0.12,
    "door-close-v3": 0.24,
    "lever-pull-v3": 0.12,
    "plate-slide-back-v3": 0.11,
    "plate-slide-side-v3": 0.11,
    "plate-slide-v3": 0.11,
    "reach-v3": 0.1,
    "reach-wall-v3": 0.1,
}
"""Radii of tasks in which the object position of the state is not the contact point; in reach tasks, from the goal."""

MOVED_M = 0.03
"""Minimum displacement of a moved object from its position when the hand came near.

Under gravity alone, a handle sinks by 0.023 m.
"""

_MOVED_M = {"coffee-button-v3": 0.005}
"""Exceptions: the full travel of this button is 0.01 m."""

LIFTED_M = 0.005
"""Minimum height of a held object above its position before, with the hand near ..."""

HELD_STEPS = 10
"""... for at least this number of steps."""

REACHING = frozenset({"reach-v3", "reach-wall-v3"})
"""Tasks without an object to move."""

_GRASPING = (
    "assembly basketball bin-picking box-close disassemble hammer peg-insert-side pick-out-of-hole pick-place "
    "pick-place-wall shelf-place stick-pull stick-push"
)
GRASPING = frozenset(f"{name}-v3" for name in _GRASPING.split())
"""Tasks that require the object to be held. Other grasping tasks of Meta-World can be solved by pushing."""

MEANINGS: dict[Stage, str] = {
    "near": "the hand came near the object (in reach tasks: within 0.1 m of the goal)",
    "moved": f"with the hand there, the object moved by {100 * MOVED_M:.0f} cm",
    "grasped": f"the object was held {1000 * LIFTED_M:.0f} mm above where it lay",
    "half way": "the distance fell to half of the initial distance, or to the success radius",
    "success": "the benchmark's success, at any step",
}


def stages(task: str) -> tuple[Stage, ...]:
    """Return the stages of a task in the order in which they are reached."""
    if task in REACHING:
        return "near", "success"
    return "near", "grasped" if task in GRASPING else "moved", "half way", "success"


def near(outcome: Episode) -> np.ndarray:
    """Return after which steps the hand was near the object (in reach tasks: the goal), bool (T,)."""
    task = outcome.init_state.task
    path = outcome.path[1:]
    distance = outcome.distance if task in REACHING else norms(path[:, :3] - path[:, 4:])
    return np.asarray(distance <= _NEAR_M.get(task, NEAR_M))


def held(outcome: Episode) -> np.ndarray:
    """Return after which steps the object was lifted with the hand near, bool (T,)."""
    height = _displacements(outcome)[:, 2]
    return np.asarray(near(outcome) & (height >= LIFTED_M))


def moved(outcome: Episode) -> np.ndarray:
    """Return after which steps the object was displaced from where it was when the hand came near, bool (T,)."""
    limit = _MOVED_M.get(outcome.init_state.task, MOVED_M)
    return np.asarray(norms(_displacements(outcome)) >= limit)


def _displacements(outcome: Episode) -> np.ndarray:
    """Return how far the object is from where it was when the hand came near, (T, 3); 0 before that."""
    is_near, positions = near(outcome), outcome.path[1:, 4:]
    if not is_near.any():
        return np.zeros_like(positions)
    first = int(np.argmax(is_near))
    displacements = positions - positions[first]
    displacements[:first] = 0
    return np.asarray(displacements)


def reached_stages(outcome: Episode) -> dict[Stage, bool]:
    """Return for each stage of the task whether the episode reached it, each by its own criterion."""
    task = get_task(outcome.init_state.task)
    half = max(task.radius, outcome.initial_distance / 2)
    reached: dict[Stage, bool] = {
        "near": bool(near(outcome).any()),
        "moved": bool(moved(outcome).any()),
        "grasped": bool(held(outcome).sum() >= HELD_STEPS),
        "half way": bool(outcome.distances.min() <= half),
        "success": outcome.success_once,
    }
    return {stage: reached[stage] for stage in stages(task.name)}


def furthest_stage(outcome: Episode) -> Stage | None:
    """Return the last stage that the episode reached, which implies those before; None if it reached none.

    A stage can be skipped: the lowest goals of pick-place can be reached without lifting the object.
    """
    furthest: Stage | None = None
    for stage, is_reached in reached_stages(outcome).items():
        furthest = stage if is_reached else furthest
    return furthest


def stage_counts(task: str, furthest: Iterable[Stage | None]) -> dict[Stage, int]:
    """Count the episodes that reached each stage or a later one, given their furthest stages."""
    counts = dict.fromkeys(stages(task), 0)
    for last in filter(None, furthest):
        for stage in counts:
            counts[stage] += 1
            if stage == last:
                break
    return counts
