"""Distance to the goal and success at each step, for all 50 tasks.

Meta-World's ``info["obj_to_target"]`` is not usable as the distance: it is constantly 0 in five tasks, a weighted norm
in two, and the distance of another object in two more. In the other tasks, the definitions here equal it (the tests
list them). All values are computed for T steps at once with Meta-World's arithmetic, so they are bit-exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from act_kit.sim.tasks import Task

PROBES: dict[str, str] = {
    "assembly-v3": "site RoundNut",
    "hammer-v3": "joint NailSlideJoint",
    "lever-pull-v3": "joint LeverAxis",
    "peg-insert-side-v3": "site pegHead",
    "reach-v3": "fingers",
    "reach-wall-v3": "fingers",
    "stick-pull-v3": "site stick_end",
}
"""Quantities that a distance or a success rule needs and that the state does not contain, by task: a site's position, a
joint's position, or the midpoint between the finger tips."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Inputs of the distance and the success rule at T steps.

    Attributes:
        state: float64 (T, 39), the observation.
        target: float64 (3,), Meta-World's target position of the object.
        probe: float64 (T, K), the task's probe: K is 3 for a position, 1 for a joint, 0 without a probe.
        grasped: bool (T,), True where both fingers press on the object; all False in tasks that do not use it.
    """

    state: np.ndarray
    target: np.ndarray
    probe: np.ndarray
    grasped: np.ndarray


def norms(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms of vectors (T, D), bit-exact with ``np.linalg.norm`` row by row."""
    lengths: np.ndarray = np.sqrt(np.vecdot(vectors, vectors))
    return lengths


Definition = Callable[[Measurements], np.ndarray]
"""Definition of a distance, float64 (T,), or of a success rule, bool (T,)."""


def _object_axis(axis: int) -> Definition:
    """Return the distance along one axis, for buttons, locks, handles, windows and the opening of a door."""
    return lambda m: np.abs(m.state[:, 4 + axis] - m.target[axis])


def _object_xy(m: Measurements) -> np.ndarray:
    """Return the horizontal distance; sweep-into places its target at the height of the object."""
    error = m.state[:, 4:7] - m.target
    error[:, 2] = 0.0
    return norms(error)


def _nut_to_peg(m: Measurements) -> np.ndarray:
    """Return the distance to the region in which assembly succeeds: within 0.02 m of the peg's axis and below its top.

    Source: ``_reward_pos``.
    """
    error = m.target - m.probe
    return np.asarray(norms(error[:, :2]) + np.maximum(0.0, -error[:, 2]))


def _from_hoop(m: Measurements) -> np.ndarray:
    """Return the offset from the hoop; basketball uses a height of 0.3 m instead of its goal's (``compute_reward``)."""
    return np.asarray(m.state[:, 4:7] - np.array([m.target[0], m.target[1], 0.3]))


DISTANCES: dict[str, Definition] = {
    "object": lambda m: norms(m.state[:, 4:7] - m.target),
    "object_x": _object_axis(0),
    "object_y": _object_axis(1),
    "object_z": _object_axis(2),
    "object_xy": _object_xy,
    "second_object": lambda m: norms(m.state[:, 11:14] - m.target),
    "hand": lambda m: norms(m.probe - m.target),
    "faucet_knob": lambda m: norms(m.state[:, 4:7] + np.array([-0.04, 0.0, 0.03]) - m.target),
    "nut_to_peg": _nut_to_peg,
    "nut_below_peg": lambda m: np.maximum(0.0, m.target[2] - m.state[:, 6]),
    "ball_to_hoop": lambda m: norms(_from_hoop(m)),
    "peg_head": lambda m: norms(m.probe - m.target),
    "nail_left": lambda m: np.maximum(0.0, 0.09 - m.probe[:, 0]),
    "lever_angle": lambda m: np.abs(m.probe[:, 0] + np.pi / 2),
}
"""Definitions of the distance, float64 (T,), by name."""


def _assembly(m: Measurements) -> np.ndarray:
    error = m.target - m.probe
    return np.asarray((norms(error[:, :2]) < 0.02) & (error[:, 2] > 0.0))


def _stick_pull(m: Measurements) -> np.ndarray:
    """Return True where the handle is at the target and the stick's end protrudes from it (``_stick_is_inserted``)."""
    handle, end = m.state[:, 11:14], m.probe
    beyond = (end[:, 0] >= handle[:, 0]) & (np.abs(end[:, 1:] - handle[:, 1:]) <= [0.04, 0.06]).all(axis=1)
    return np.asarray((norms(handle - m.target) <= 0.12) & beyond)


def _stick_push(m: Measurements) -> np.ndarray:
    """Return True where the container is at the target and the stick is held above the table.

    The stick lies at 0.02 m initially. Source: ``grasp_success``.
    """
    held = m.grasped & (m.state[:, 3] > 0) & (m.state[:, 6] - 0.01 > 0.02)
    return np.asarray((norms(m.state[:, 11:14] - m.target) <= 0.12) & held)


SUCCESSES: dict[str, Definition] = {
    "assembly-v3": _assembly,
    "basketball-v3": lambda m: norms(_from_hoop(m) * np.array([1.0, 1.0, 2.0])) <= 0.08,
    "box-close-v3": lambda m: norms(m.state[:, 4:7] - m.target) < 0.08,
    "disassemble-v3": lambda m: m.state[:, 6] > m.target[2],
    "hammer-v3": lambda m: m.probe[:, 0] > 0.09,
    "peg-insert-side-v3": lambda m: norms((m.probe - m.target) * np.array([1.0, 2.0, 2.0])) <= 0.07,
    "stick-pull-v3": _stick_pull,
    "stick-push-v3": _stick_push,
}
"""Success rules, bool (T,), of the tasks whose rule is not just ``distance <= radius``."""


def evaluate_step(task: Task, measurements: Measurements) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance, float64 (T,), and the benchmark's success, bool (T,), at each step."""
    distance = DISTANCES[task.distance](measurements)
    success = SUCCESSES[task.name](measurements) if task.name in SUCCESSES else distance <= task.radius
    return distance, success
