"""How far an episode got: near the object, moving or holding it, half way, success.

Meta-World's own ``info["near_object"]`` and ``info["grasp_success"]`` cannot serve: one is a shaped reward in five
tasks and constantly 0 in two, the other constantly 1 in ten and 0 in five, and in seven true of an open gripper. What
is asked here is seen in every episode: hand, object and our own distance. The radii were measured on the scripted
experts: see the tests, which hold all of them to every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from act_kit.rollouts.rollout import Outcome
from act_kit.sim.distance import norms
from act_kit.sim.tasks import get_task

Stage = Literal["near", "moved", "grasped", "half way", "success"]

NEAR_M = 0.08
"""The hand is near the object from here on; its fingertips are 0.045 m further down."""

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
"""Where the state's mark of the object is not where a hand would touch it; of the reach tasks, from the goal."""

MOVED_M = 0.03
"""The object has been moved when it is this far from where it was when the hand came near. By itself, pressed by
gravity, a handle sinks by 0.023 m."""

_MOVED_M = {"coffee-button-v3": 0.005}
"""That button travels 0.01 m in all."""

LIFTED_M = 0.005
"""The object is held when, with the hand near, it is this far above where it lay before ..."""

HELD_STEPS = 10
"""... for so many steps."""

REACHING = frozenset({"reach-v3", "reach-wall-v3"})
"""Tasks without anything to move."""

GRASPING = frozenset(
    f"{name}-v3"
    for name in [
        "assembly", "basketball", "bin-picking", "box-close", "disassemble", "hammer", "peg-insert-side",
        "pick-out-of-hole", "pick-place", "pick-place-wall", "shelf-place", "stick-pull", "stick-push",
    ]
)  # fmt: skip
"""Tasks that need the object held. Others that Meta-World calls a grasp can be done by pushing."""

MEANINGS: dict[Stage, str] = {
    "near": "the hand came near the object (of reach tasks: within 0.1 m of the goal)",
    "moved": f"with the hand there, the object moved by {100 * MOVED_M:.0f} cm",
    "grasped": f"the object was held {1000 * LIFTED_M:.0f} mm above where it lay",
    "half way": "the distance fell to half of what it was at the start, or to the radius of success",
    "success": "the benchmark's success, once",
}


def stages(task: str) -> tuple[Stage, ...]:
    """Return the stages of a task, the first to be reached first."""
    if task in REACHING:
        return "near", "success"
    return "near", "grasped" if task in GRASPING else "moved", "half way", "success"


def near(outcome: Outcome) -> np.ndarray:
    """Tell after which steps the hand was near the object (of reach tasks: the goal), bool (T,)."""
    task = outcome.init_state.task
    seen = outcome.path[1:]
    distance = outcome.distance[1:] if task in REACHING else norms(seen[:, :3] - seen[:, 4:])
    return np.asarray(distance <= _NEAR_M.get(task, NEAR_M))


def held(outcome: Outcome) -> np.ndarray:
    """Tell after which steps the object was in the air with the hand near, bool (T,)."""
    with_hand = near(outcome)
    if not with_hand.any():
        return with_hand
    first = int(np.argmax(with_hand))
    height = outcome.path[1:, 6]
    lifted: np.ndarray = with_hand & (height - height[first] >= LIFTED_M)
    lifted[:first] = False
    return lifted


def moved(outcome: Outcome) -> np.ndarray:
    """Tell after which steps the object was elsewhere than when the hand first came near, bool (T,)."""
    with_hand = near(outcome)
    if not with_hand.any():
        return with_hand
    first = int(np.argmax(with_hand))
    places = outcome.path[1:, 4:]
    elsewhere = norms(places - places[first]) >= _MOVED_M.get(outcome.init_state.task, MOVED_M)
    elsewhere[:first] = False
    return np.asarray(elsewhere)


def shown(outcome: Outcome) -> dict[Stage, bool]:
    """Tell of each of its task's stages whether the episode shows it."""
    task = get_task(outcome.init_state.task)
    half = max(task.radius, outcome.distance[0] / 2)
    tests: dict[Stage, Callable[[], bool | np.bool]] = {
        "near": lambda: near(outcome).any(),
        "moved": lambda: moved(outcome).any(),
        "grasped": lambda: held(outcome).sum() >= HELD_STEPS,
        "half way": lambda: outcome.distance.min() <= half,
        "success": lambda: outcome.success_once,
    }
    return {stage: bool(tests[stage]()) for stage in stages(task.name)}


def furthest(outcome: Outcome) -> Stage | None:
    """Return the last stage that the episode shows, which implies those before; None if it shows none.

    A stage can be skipped: the lowest goals of pick-place can be reached without lifting the object.
    """
    seen = [stage for stage, is_shown in shown(outcome).items() if is_shown]
    return seen[-1] if seen else None


def stage_counts(task: str, outcomes: Iterable[Outcome]) -> dict[Stage, int]:
    """Count the episodes that got as far as each stage, or further."""
    order = stages(task)
    reached = [order.index(last) for last in map(furthest, outcomes) if last is not None]
    return {stage: sum(index >= i for index in reached) for i, stage in enumerate(order)}
