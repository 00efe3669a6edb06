"""What an engine does: reset one task to a start, and step it by chunks of actions."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
"""The part of MuJoCo's state that decides all that follows."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
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


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """Everything that decides how an episode continues, beside its initial state. Each engine continues the other's.

    Attributes:
        physics: float64 (P,), MuJoCo's full integration state, warm start and mocap included.
        previous: float64 (18,), the part of the last observation that the next one repeats.
        numbers: Scalar attributes of Meta-World's environment: some rewards remember what they saw first.
    """

    physics: np.ndarray
    previous: np.ndarray
    numbers: dict[str, Any]


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

    def hold_model(self) -> AbstractContextManager[mujoco.MjModel]:
        """Hold the model, with the bodies and sites of this engine's initial state in it, against other threads."""
        ...

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``, float64 (3,) or (6,); return the state, float64 (39,), and the distance."""
        ...

    def step(self, actions: np.ndarray, *, rewards: bool) -> StepBatch:
        """Carry out actions, float32 (T, 4) in [-1, 1]."""
        ...

    def save(self) -> EngineState:
        """Return a copy of the state."""
        ...

    def restore(self, rand_vec: np.ndarray, num_steps: int, state: EngineState) -> None:
        """Return to a state that was saved ``num_steps`` steps after a reset to ``rand_vec``."""
        ...


def get_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return MuJoCo's full integration state, float64 (P,)."""
    physics = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, physics, PHYSICS)
    return physics


def set_physics(model: mujoco.MjModel, data: mujoco.MjData, physics: np.ndarray) -> None:
    """Set MuJoCo's full integration state, float64 (P,), and all that is derived from it."""
    mujoco.mj_setState(model, data, physics.copy(), PHYSICS)  # MuJoCo takes no read-only array
    mujoco.mj_forward(model, data)  # this also moves the solver's warm start
    mujoco.mj_setState(model, data, physics.copy(), PHYSICS)


def get_numbers(env: Any) -> dict[str, Any]:
    """Return the scalar attributes of a Meta-World environment, all but its count of steps."""
    numbers = {name: value for name, value in vars(env).items() if value is None or isinstance(value, _SCALARS)}
    return {name: value for name, value in numbers.items() if name != "curr_path_length"}


_SCALARS = (bool, int, float, np.generic)
_making = threading.Lock()


def make_environment(task: str) -> Any:
    """Make Meta-World's environment of a task, its goal visible, its start ours to choose."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # 1 s: only who simulates pays for it

    with _making:  # MuJoCo's compiler keeps the last error and the last model of the process
        env: Any = ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    # The observation space was cached with the goal hidden; `step` would clip the goal to zero.
    del env.sawyer_observation_space
    # Meta-World's own seeding cannot be trusted: ``reset(seed=…)`` is ignored, and an unfrozen reset draws twice.
    env._set_task_called = True
    env._freeze_rand_vec = True
    return env
