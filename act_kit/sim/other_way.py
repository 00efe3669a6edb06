"""Experts that pass the wall on the other side than Meta-World's own, for demonstrations that conflict.

Meta-World's expert of push-wall-v3 goes round the left end of the wall, and that of pick-place-wall-v3 goes over it.
These go round the right end. Data of both show what a policy learns from operators who solve a task in different ways.
"""

from __future__ import annotations

import numpy as np

from act_kit.errors import TaskError
from act_kit.sim.tasks import ACTION_DIM

TASKS = ("push-wall-v3", "pick-place-wall-v3")

_WALL_FRONT, _WALL_BACK, _WALL_RIGHT = 0.74, 0.76, 0.22
"""The wall in meters: its sides in y and its right end in x; it is 0.12 m high."""

_CLEARANCE = 0.07
"""Distance from the wall at which the gripper passes, in meters."""

_GAIN = 10.0
"""Action per meter to the target, as in Meta-World's experts."""

_GRASP_RADIUS, _GRASP_HEIGHT = 0.015, 0.03
"""Distances between hand and object at which it is grasped, sideways and upwards, in meters."""

_HELD_RADIUS, _HELD_HEIGHT, _CLOSED = 0.035, 0.06, 0.6
"""Larger distances below which the object is still held, and the opening of the gripper around it."""

_EFFORT, _HELD_SPEED = 0.9, 0.7
"""Gripper effort, and the largest action while the object is held: it slips out if it is moved faster."""

_APPROACH_HEIGHT = _CARRY_HEIGHT = 0.12
"""Height of the hand above an object to grasp, and above the table with one in it, in meters."""

_OBJECT_OFFSET = np.array([-0.005, 0.0, 0.0])
"""Where Meta-World's experts grasp the object, relative to its center."""


class OtherWayExpert:
    """Expert that goes round the right end of the wall; stateless, as Meta-World's own, and needs a visible goal.

    Raises:
        TaskError: The task has no wall that can be passed on two sides.
    """

    def __init__(self, task: str) -> None:
        if task not in TASKS:
            raise TaskError(f"{task} has no second scripted expert: expected one of {', '.join(TASKS)}.")
        self._lifts = task == "pick-place-wall-v3"

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, float32 (4,) in [-1, 1], for a state, float64 (39,)."""
        hand, opening, grasp = state[:3], state[3], state[4:7] + _OBJECT_OFFSET
        distance, height = float(np.linalg.norm(hand[:2] - grasp[:2])), float(hand[2] - grasp[2])
        is_held = opening < _CLOSED and distance <= _HELD_RADIUS and height <= _HELD_HEIGHT
        target, speed, effort = grasp + np.array([0.0, 0.0, _APPROACH_HEIGHT]), 1.0, 0.0
        if is_held:
            target, speed, effort = self._way_to(state[-3:], hand), _HELD_SPEED, _EFFORT
        elif distance <= _GRASP_RADIUS:
            target = grasp + np.array([0.0, 0.0, _GRASP_HEIGHT])
            effort = _EFFORT if height <= _GRASP_HEIGHT + 0.015 else 0.0
        action = np.empty(ACTION_DIM, dtype=np.float32)
        action[:3] = np.clip(_GAIN * (target - hand), -speed, speed)
        action[3] = effort
        return action

    def _way_to(self, goal: np.ndarray, hand: np.ndarray) -> np.ndarray:
        """Return the next point of the way of the grasped object: right, past the end of the wall, then to the goal."""
        right, height = _WALL_RIGHT + _CLEARANCE, _CARRY_HEIGHT if self._lifts else hand[2]
        if hand[1] > _WALL_BACK + 0.5 * _CLEARANCE:
            return goal if self._lifts else np.array([goal[0], goal[1], hand[2]])
        if hand[0] < right - 0.02:
            return np.array([right + 0.02, min(hand[1], _WALL_FRONT - _CLEARANCE), height])
        return np.array([right, _WALL_BACK + _CLEARANCE, height])
