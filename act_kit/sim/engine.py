"""What an engine does: reset one task to a start, and step it by chunks of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
"""The part of MuJoCo's state that decides all that follows."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What T consecutive actions led to; row t is what was seen after action t.

    Attributes:
        state: float64 (T, 39), the Meta-World observation with the goal visible.
        success: bool (T,), the benchmark's success at that step.
        distance: float64 (T,), see :mod:`act_kit.sim.distance`.
        reward: float64 (T,), Meta-World's dense reward, 0 to 10; None unless asked for.
    """

    state: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    reward: np.ndarray | None

    def __len__(self) -> int:
        return len(self.success)


class Engine(Protocol):
    """One environment of one task. Deterministic to the bit: the same start and actions give the same numbers."""

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        ...

    @property
    def data(self) -> mujoco.MjData:
        """MuJoCo's state; it may be another object after each reset."""
        ...

    def take_model(self) -> None:
        """Make :attr:`model` that of this engine's start, where several engines share one."""
        ...

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``, float64 (3,) or (6,); return the state, float64 (39,), and the distance."""
        ...

    def step(self, actions: np.ndarray, *, rewards: bool) -> Segment:
        """Carry out actions, float32 (T, 4) in [-1, 1]."""
        ...


def get_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return MuJoCo's full integration state, float64 (P,)."""
    physics = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, physics, PHYSICS)
    return physics


def make_environment(task: str) -> Any:
    """Make Meta-World's environment of a task, its goal visible, its start ours to choose."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # 1 s: only who simulates pays for it

    env: Any = ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    # The observation space was cached with the goal hidden; `step` would clip the goal to zero.
    del env.sawyer_observation_space
    # Meta-World's own seeding cannot be trusted: ``reset(seed=…)`` is ignored, and an unfrozen reset draws twice.
    env._set_task_called = True
    env._freeze_rand_vec = True
    return env
