"""Base of the engines, which reset one task to an initial state and step it by chunks of actions."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import mujoco
import numpy as np

from act_kit.sim.tasks import STATE_DIM, get_task

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
"""The part of MuJoCo's state that determines all following steps."""

INFO_KEYS = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)
"""Keys of the ``info`` that Meta-World computes with the reward, the same in all tasks."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Results of T consecutive actions; row t is measured after action t.

    Attributes:
        state: float64 (T, 39), the Meta-World observation with the goal visible.
        success: bool (T,), the benchmark's success at that step.
        distance: float64 (T,); see :mod:`act_kit.sim.distance`.
        reward: float64 (T,), Meta-World's dense reward, 0 to 10; None if not requested.
        info: float64 (T, 7), Meta-World's ``info`` in the order of :data:`INFO_KEYS`; None if no reward was requested.
        physics: float64 (T, P), MuJoCo's full integration state before each action; None if not requested.
    """

    state: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    reward: np.ndarray | None
    info: np.ndarray | None = None
    physics: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.success)


NO_STEPS = StepBatch(state=np.empty((0, STATE_DIM)), success=np.empty(0, dtype=bool), distance=np.empty(0), reward=None)


def concatenate(batches: Sequence[StepBatch]) -> StepBatch:
    """Concatenate the results of consecutive chunks of actions, at least one."""
    if len(batches) == 1:
        return batches[0]
    arrays: dict[str, Any] = {}
    for field in fields(StepBatch):
        parts = [getattr(batch, field.name) for batch in batches]
        arrays[field.name] = None if parts[0] is None else np.concatenate(parts)
    return StepBatch(**arrays)


def clip_actions(actions: np.ndarray) -> np.ndarray:
    """Return a copy of actions, clipped to [-1, 1], as float32."""
    clipped: np.ndarray = np.minimum(np.maximum(actions, -1.0), 1.0).astype(np.float32, copy=False)
    return clipped


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """State that, together with the initial state, determines how an episode continues, in either engine.

    Attributes:
        physics: float64 (P,), MuJoCo's full integration state, including warm start and mocap.
        previous: float64 (18,), the part of the last observation that the next observation repeats.
        numbers: Scalar attributes of Meta-World's environment; some rewards store values of the first step there.
    """

    physics: np.ndarray
    previous: np.ndarray
    numbers: dict[str, Any]


class Engine(ABC):
    """One environment of one task. It is bit-exact: the same initial state and actions give the same numbers.

    A copy or an unpickled engine is independent and in the same state.
    """

    _env: Any
    _previous: np.ndarray
    _rand_vec: np.ndarray | None

    def __init__(self, task: str) -> None:
        self._task = get_task(task)
        self._rand_vec = None

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model; other engines may share it, so use :meth:`hold_model` to access it."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """The MuJoCo data; it can be another object after each reset."""
        return self._env.data

    @abstractmethod
    def hold_model(self) -> AbstractContextManager[mujoco.MjModel]:
        """Lock the model for this thread, with its bodies and sites set to this engine's initial state."""

    @abstractmethod
    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``, float64 (3,) or (6,); return the state, float64 (39,), and the distance."""

    @abstractmethod
    def step(self, actions: np.ndarray, *, rewards: bool, physics: bool = False) -> StepBatch:
        """Execute actions, float32 (T, 4) in [-1, 1], at least one.

        With ``rewards``, compute Meta-World's reward and ``info`` after each; with ``physics``, record the physics
        state before each.
        """

    def save(self) -> EngineState:
        """Return a copy of the state."""
        physics = get_physics(self.model, self.data)
        return EngineState(physics=physics, previous=self._previous.copy(), numbers=get_numbers(self._env))

    def restore(self, rand_vec: np.ndarray, num_steps: int, state: EngineState) -> None:
        """Restore a state that was saved ``num_steps`` steps after a reset to ``rand_vec``."""
        with self.hold_model() as model:
            if self._rand_vec is None or not np.array_equal(self._rand_vec, rand_vec):
                self.reset(rand_vec)
            set_physics(model, self.data, state.physics)
        self._previous = state.previous.copy()
        vars(self._env).update(state.numbers, curr_path_length=num_steps)

    def __getstate__(self) -> dict[str, Any]:
        num_steps = self._env.curr_path_length
        return {"task": self._task.name, "rand_vec": self._rand_vec, "num_steps": num_steps, "state": self.save()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(saved["task"])  # type: ignore[misc]
        if saved["rand_vec"] is not None:
            self.restore(saved["rand_vec"], saved["num_steps"], saved["state"])


def get_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return MuJoCo's full integration state, float64 (P,)."""
    physics = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, physics, PHYSICS)
    return physics


def set_physics(model: mujoco.MjModel, data: mujoco.MjData, physics: np.ndarray) -> None:
    """Set MuJoCo's full integration state, float64 (P,), and all derived quantities."""
    mujoco.mj_setState(model, data, physics.copy(), PHYSICS)  # MuJoCo does not accept a read-only array
    mujoco.mj_forward(model, data)  # this also changes the solver's warm start, so the state is set again
    mujoco.mj_setState(model, data, physics.copy(), PHYSICS)


def get_numbers(env: Any) -> dict[str, Any]:
    """Return the scalar attributes of a Meta-World environment, except its step counter."""
    numbers = {name: value for name, value in vars(env).items() if value is None or isinstance(value, _SCALARS)}
    return {name: value for name, value in numbers.items() if name != "curr_path_length"}


_SCALARS = (bool, int, float, np.generic)
_compiler_lock = threading.Lock()


def make_environment(task: str) -> Any:
    """Make Meta-World's environment of a task, with a visible goal and an initial state that the caller sets."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # takes 1 s, so imported only for simulation

    with _compiler_lock:  # MuJoCo's compiler stores the last error and the last model of the process
        env: Any = ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    # The observation space was cached with the goal hidden; `step` would clip the goal to zero.
    del env.sawyer_observation_space
    # Meta-World's own seeding is unusable: ``reset(seed=…)`` is ignored, and an unfrozen reset samples twice.
    env._set_task_called = True
    env._freeze_rand_vec = True
    return env
