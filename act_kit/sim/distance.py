"""How far a task is from done: one number per step, in metres (radians for lever-pull), defined for all 50 tasks.

Meta-World's ``info["obj_to_target"]`` cannot serve: it is constantly 0 in five tasks, a weighted norm in two, the
distance of something else in two more. Where it is sound, the definitions here equal it (the tests say where).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from act_kit.sim.tasks import DistanceName

Measure = Callable[[Any, np.ndarray], float]
"""(Meta-World environment, its state (39,)) -> distance."""


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def _object_axis(axis: int) -> Measure:
    """Tasks judged along one axis: buttons, locks, handles, windows, the opening of a door."""
    return lambda env, state: float(abs(state[4 + axis] - env._target_pos[axis]))


def _nut_to_peg(env: Any, state: np.ndarray) -> float:
    """Assembly succeeds within 0.02 m of the peg's axis and below its top (``_reward_pos``)."""
    error = env._target_pos - env.data.site("RoundNut").xpos
    return _norm(error[:2]) + max(0.0, float(-error[2]))


def _ball_to_hoop(env: Any, state: np.ndarray) -> float:
    """Basketball aims 0.3 m high, whatever its goal says (``compute_reward``)."""
    return _norm(state[4:7] - np.array([env._target_pos[0], env._target_pos[1], 0.3]))


MEASURES: dict[DistanceName, Measure] = {
    "object": lambda env, state: _norm(state[4:7] - env._target_pos),
    "object_x": _object_axis(0),
    "object_y": _object_axis(1),
    "object_z": _object_axis(2),
    "object_xy": lambda env, state: _norm(state[4:6] - env._target_pos[:2]),
    "second_object": lambda env, state: _norm(state[11:14] - env._target_pos),
    "hand": lambda env, state: _norm(env.tcp_center - env._target_pos),
    "faucet_knob": lambda env, state: _norm(state[4:7] + np.array([-0.04, 0.0, 0.03]) - env._target_pos),
    "nut_to_peg": _nut_to_peg,
    "nut_below_peg": lambda env, state: max(0.0, float(env._target_pos[2] - state[6])),
    "ball_to_hoop": _ball_to_hoop,
    "peg_head": lambda env, state: _norm(env.data.site("pegHead").xpos - env._target_pos),
    "nail_left": lambda env, state: max(0.0, 0.09 - float(env.data.joint("NailSlideJoint").qpos[0])),
    "lever_angle": lambda env, state: abs(float(env.data.joint("LeverAxis").qpos[0]) + np.pi / 2),
}
