"""Motion of the hand and the gripper in one episode, as a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from act_kit.sim.tasks import CONTROL_HZ

_IDLE_M = 2e-4
"""Largest hand motion of an idle step: 2 % of the largest motion that an action commands."""

_CLIPPED = 0.999

_SWITCH = 0.5


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Motion of one demonstration: None where a value is undefined."""

    path_efficiency: float | None
    idle_fraction: float
    clipped_fraction: float
    jerk: float | None
    gripper_switches: int


def measure_motion(state: np.ndarray, action: np.ndarray) -> Motion:
    """Measure one demonstration in Meta-World: states (T, 39) and actions (T, 4)."""
    hand = state[:, :3]
    moves = np.linalg.norm(np.diff(hand, axis=0), axis=1)
    path_length, is_gripper_idle = moves.sum(), np.abs(np.diff(action[:, 3])) < 1e-3
    return Motion(
        path_efficiency=float(np.linalg.norm(hand[-1] - hand[0]) / path_length) if path_length > 1e-3 else None,
        idle_fraction=float(((moves < _IDLE_M) & is_gripper_idle).mean()) if len(moves) else 0.0,
        clipped_fraction=float((np.abs(action[:, :3]) >= _CLIPPED).any(axis=1).mean()),
        jerk=_rms(np.diff(hand, n=3, axis=0) * CONTROL_HZ**3) if len(hand) > 3 else None,
        gripper_switches=int((np.abs(np.diff(action[:, 3])) > _SWITCH).sum()),
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).sum(axis=-1).mean()))
