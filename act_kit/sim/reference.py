"""The reference engine: Meta-World's own environment, stepped and reset by its own code.

It is slow and correct by definition: every other engine must return the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np

from act_kit.sim.distance import DISTANCES, PROBES, Measurements
from act_kit.sim.engine import (
    PHYSICS,
    EngineState,
    StepBatch,
    get_numbers,
    get_physics,
    make_environment,
    set_physics,
)
from act_kit.sim.tasks import get_task


class ReferenceEngine:
    """One Meta-World environment of a task. A copy or an unpickled engine is independent and in the same state."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._lock = threading.RLock()
        self._rand_vec: np.ndarray | None = None
        self._env = make_environment(task)
        self._measure_distance = DISTANCES[get_task(task).distance]
        self._probe_kind, _, self._probe_name = PROBES.get(task, "").partition(" ")
        self._scratch = mujoco.MjData(self.model)

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """The MuJoCo data."""
        return self._env.data

    @contextmanager
    def hold_model(self) -> Generator[mujoco.MjModel]:
        """Lock the model, which only this engine uses; see :class:`~act_kit.sim.engine.Engine`."""
        with self._lock:
            yield self.model

    def save(self) -> EngineState:
        """Return a copy of the state."""
        physics = get_physics(self.model, self.data)
        return EngineState(physics=physics, previous=self._env._prev_obs.copy(), numbers=get_numbers(self._env))

    def restore(self, rand_vec: np.ndarray, num_steps: int, state: EngineState) -> None:
        """Restore a saved state; see :class:`~act_kit.sim.engine.Engine`."""
        with self.hold_model() as model:
            if self._rand_vec is None or not np.array_equal(self._rand_vec, rand_vec):
                self.reset(rand_vec)
            set_physics(model, self.data, state.physics)
        self._env._prev_obs = state.previous.copy()
        vars(self._env).update(state.numbers, curr_path_length=num_steps)

    def __getstate__(self) -> dict[str, Any]:
        num_steps = self._env.curr_path_length
        return {"task": self._task, "rand_vec": self._rand_vec, "num_steps": num_steps, "state": self.save()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(saved["task"])  # type: ignore[misc]
        if saved["rand_vec"] is not None:
            self.restore(saved["rand_vec"], saved["num_steps"], saved["state"])

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``; see :class:`~act_kit.sim.engine.Engine`."""
        self._rand_vec = None  # until the reset has succeeded
        self._env._last_rand_vec = rand_vec
        with self.hold_model():
            state, _ = self._env.reset()
            self._rand_vec = rand_vec
            return state, self._initial_distance()

    def _initial_distance(self) -> float:
        """Return the distance at reset; in some tasks Meta-World's first state shows outdated object positions.

        The kinematics are updated in a copy, because an update of the original would change the last bits of the
        following steps.
        """
        env, data = self._env, self.data
        env.data = self._scratch
        try:
            mujoco.mj_setState(self.model, env.data, get_physics(self.model, data), PHYSICS)
            mujoco.mj_forward(self.model, env.data)
            current = env._get_curr_obs_combined_no_goal()
            return self._distance(np.concatenate([current, current, env._target_pos]))
        finally:
            env.data = data

    def _distance(self, state: np.ndarray) -> float:
        env = self._env
        match self._probe_kind:
            case "joint":
                probe = env.data.joint(self._probe_name).qpos
            case "site":
                probe = env.data.site(self._probe_name).xpos
            case "fingers":
                probe = env.tcp_center
            case _:
                probe = np.empty(0)
        measurements = Measurements(
            state=state[None], target=env._target_pos, probe=probe[None], grasped=np.zeros(1, dtype=bool)
        )
        return float(self._measure_distance(measurements)[0])

    def step(self, actions: np.ndarray, *, rewards: bool) -> StepBatch:
        """Execute actions, float32 (T, 4) in [-1, 1]."""
        num = len(actions)
        reward = np.empty(num)
        step_batch = StepBatch(
            state=np.empty((num, 39)),
            success=np.empty(num, dtype=bool),
            distance=np.empty(num),
            reward=reward if rewards else None,
        )
        for t, action in enumerate(actions):
            state, reward[t], _, _, info = self._env.step(action)
            step_batch.state[t] = state
            step_batch.success[t] = bool(info["success"])
            step_batch.distance[t] = self._distance(state)
        return step_batch
