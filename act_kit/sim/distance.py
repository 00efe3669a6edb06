"""How far a task is from done, and whether it is done: one number and one bool per step, for all 50 tasks.

Meta-World's ``info["obj_to_target"]`` cannot serve as the distance: it is constantly 0 in five tasks, a weighted norm
in two, the distance of something else in two more. Where it is sound, the definitions here equal it (the tests say
where). All is computed for T steps at once, with the arithmetic of Meta-World, so that it is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from act_kit.sim.tasks import DistanceName, Task

Probe = Literal[
    "", "fingers", "site RoundNut", "site pegHead", "site stick_end", "joint NailSlideJoint", "joint LeverAxis"
]
"""What a distance or a success needs to see that the state does not show."""

PROBES: dict[str, Probe] = {
    "assembly-v3": "site RoundNut",
    "hammer-v3": "joint NailSlideJoint",
    "lever-pull-v3": "joint LeverAxis",
    "peg-insert-side-v3": "site pegHead",
    "reach-v3": "fingers",
    "reach-wall-v3": "fingers",
    "stick-pull-v3": "site stick_end",
}
"""Probes by task, for those that need one: a position, a joint's, or the middle between the finger tips."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What T steps showed.

    Attributes:
        state: float64 (T, 39), the observation.
        target: float64 (3,), where Meta-World wants the object.
        probe: float64 (T, K), what the task's probe read: K is 3 for a position, 1 for a joint, 0 without one.
        grasped: bool (T,), whether both fingers press on the object; all False in tasks that do not ask.
    """

    state: np.ndarray
    target: np.ndarray
    probe: np.ndarray
    grasped: np.ndarray


def norms(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms of vectors (T, D), to the bit those of ``np.linalg.norm`` row by row."""
    lengths: np.ndarray = np.sqrt(np.vecdot(vectors, vectors))
    return lengths


Measure = Callable[[Measurements], np.ndarray]


def _object_axis(axis: int) -> Measure:
    """Tasks judged along one axis: buttons, locks, handles, windows, the opening of a door."""
    return lambda seen: np.abs(seen.state[:, 4 + axis] - seen.target[axis])


def _object_xy(seen: Measurements) -> np.ndarray:
    """Sweep-into puts its target at the height of the object."""
    error = seen.state[:, 4:7] - seen.target
    error[:, 2] = 0.0
    return norms(error)


def _nut_to_peg(seen: Measurements) -> np.ndarray:
    """Assembly succeeds within 0.02 m of the peg's axis and below its top (``_reward_pos``)."""
    error = seen.target - seen.probe
    return np.asarray(norms(error[:, :2]) + np.maximum(0.0, -error[:, 2]))


def _from_hoop(seen: Measurements) -> np.ndarray:
    """Basketball aims 0.3 m high, whatever its goal says (``compute_reward``)."""
    return np.asarray(seen.state[:, 4:7] - np.array([seen.target[0], seen.target[1], 0.3]))


MEASURES: dict[DistanceName, Measure] = {
    "object": lambda seen: norms(seen.state[:, 4:7] - seen.target),
    "object_x": _object_axis(0),
    "object_y": _object_axis(1),
    "object_z": _object_axis(2),
    "object_xy": _object_xy,
    "second_object": lambda seen: norms(seen.state[:, 11:14] - seen.target),
    "hand": lambda seen: norms(seen.probe - seen.target),
    "faucet_knob": lambda seen: norms(seen.state[:, 4:7] + np.array([-0.04, 0.0, 0.03]) - seen.target),
    "nut_to_peg": _nut_to_peg,
    "nut_below_peg": lambda seen: np.maximum(0.0, seen.target[2] - seen.state[:, 6]),
    "ball_to_hoop": lambda seen: norms(_from_hoop(seen)),
    "peg_head": lambda seen: norms(seen.probe - seen.target),
    "nail_left": lambda seen: np.maximum(0.0, 0.09 - seen.probe[:, 0]),
    "lever_angle": lambda seen: np.abs(seen.probe[:, 0] + np.pi / 2),
}
"""Distances, float64 (T,), by name."""


def _assembly(seen: Measurements) -> np.ndarray:
    error = seen.target - seen.probe
    return np.asarray((norms(error[:, :2]) < 0.02) & (error[:, 2] > 0.0))


def _stick_pull(seen: Measurements) -> np.ndarray:
    """The handle is there, and the end of the stick sticks out of it (``_stick_is_inserted``)."""
    handle, end = seen.state[:, 11:14], seen.probe
    beyond = (end[:, 0] >= handle[:, 0]) & (np.abs(end[:, 1:] - handle[:, 1:]) <= [0.04, 0.06]).all(axis=1)
    return np.asarray((norms(handle - seen.target) <= 0.12) & beyond)


def _stick_push(seen: Measurements) -> np.ndarray:
    """The container is there, and the stick, which lay at 0.02 m, is held above the table (``grasp_success``)."""
    held = seen.grasped & (seen.state[:, 3] > 0) & (seen.state[:, 6] - 0.01 > 0.02)
    return np.asarray((norms(seen.state[:, 11:14] - seen.target) <= 0.12) & held)


SUCCESSES: dict[str, Measure] = {
    "assembly-v3": _assembly,
    "basketball-v3": lambda seen: norms(_from_hoop(seen) * np.array([1.0, 1.0, 2.0])) <= 0.08,
    "box-close-v3": lambda seen: norms(seen.state[:, 4:7] - seen.target) < 0.08,
    "disassemble-v3": lambda seen: seen.state[:, 6] > seen.target[2],
    "hammer-v3": lambda seen: seen.probe[:, 0] > 0.09,
    "peg-insert-side-v3": lambda seen: norms((seen.probe - seen.target) * np.array([1.0, 2.0, 2.0])) <= 0.07,
    "stick-pull-v3": _stick_pull,
    "stick-push-v3": _stick_push,
}
"""Success, bool (T,), where it is not just ``distance <= radius``."""


def evaluate_step(task: Task, seen: Measurements) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance, float64 (T,), and the benchmark's success, bool (T,), at each step."""
    distance = MEASURES[task.distance](seen)
    success = SUCCESSES[task.name](seen) if task.name in SUCCESSES else distance <= task.radius
    return distance, success
