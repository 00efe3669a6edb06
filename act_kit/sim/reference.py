"""The reference engine: Meta-World's own environment, stepped and reset by its own code.

It is slow and correct by definition: every other engine must return the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import mujoco
import numpy as np

from act_kit.sim.distance import DISTANCES, PROBES, Measurements
from act_kit.sim.engine import INFO_KEYS, PHYSICS, Engine, StepBatch, get_physics, make_environment


class ReferenceEngine(Engine):
    """One Meta-World environment of a task."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self._lock = threading.RLock()
        self._env = make_environment(task)
        self._measure_distance = DISTANCES[self._task.distance]
        self._probe_kind, _, self._probe_name = PROBES.get(task, "").partition(" ")
        self._scratch = mujoco.MjData(self.model)

    @property
    def _previous(self) -> np.ndarray:
        previous: np.ndarray = self._env._prev_obs
        return previous

    @_previous.setter
    def _previous(self, previous: np.ndarray) -> None:
        self._env._prev_obs = previous

    @contextmanager
    def hold_model(self) -> Generator[mujoco.MjModel]:
        """Lock the model, which only this engine uses."""
        with self._lock:
            yield self.model

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``; see :class:`~act_kit.sim.engine.Engine`."""
        self._rand_vec = None  # until the reset has succeeded
        self._env._last_rand_vec = rand_vec
        with self.hold_model():
            state, _ = self._env.reset()
            self._rand_vec = rand_vec
            return state, self._initial_distance()

    def _initial_distance(self) -> float:
        """Return the distance at reset, from kinematics updated in a copy; see the fast engine."""
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

    def step(self, actions: np.ndarray, *, rewards: bool, physics: bool = False) -> StepBatch:
        """Execute actions; see :class:`~act_kit.sim.engine.Engine`."""
        num = len(actions)
        reward, infos = np.empty(num), np.empty((num, len(INFO_KEYS)))
        step_batch = StepBatch(
            state=np.empty((num, 39)),
            success=np.empty(num, dtype=bool),
            distance=np.empty(num),
            reward=reward if rewards else None,
            info=infos if rewards else None,
            physics=np.empty((num, mujoco.mj_stateSize(self.model, PHYSICS))) if physics else None,
        )
        for t, action in enumerate(actions):
            if step_batch.physics is not None:
                step_batch.physics[t] = get_physics(self.model, self.data)
            state, reward[t], _, _, info = self._env.step(action)
            infos[t] = [info[key] for key in INFO_KEYS]
            step_batch.state[t] = state
            step_batch.success[t] = bool(info["success"])
            step_batch.distance[t] = self._distance(state)
        return step_batch
