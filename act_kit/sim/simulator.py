"""Meta-World as a simulator that resets to exactly the start it is told, and steps a chunk of actions at a time.

Meta-World's own seeding cannot be trusted (``reset(seed=…)`` is ignored, an unfrozen reset draws twice and leaves
stale kinematics behind in twelve tasks), so the environment is always frozen to a start drawn by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from act_kit.sim.distance import MEASURES
from act_kit.sim.starts import Start
from act_kit.sim.tasks import HORIZON, get_task

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What T consecutive actions led to; row t is what was seen after action t.

    Attributes:
        state: float64 (T, 39), the Meta-World observation with the goal visible.
        reward: float64 (T,), Meta-World's dense reward, 0 to 10.
        success: bool (T,), the benchmark's success at that step.
        distance: float64 (T,), see :mod:`act_kit.sim.distance`.
    """

    state: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.success)


class Simulator:
    """One Meta-World task, reset to starts and stepped by chunks; bit-exact from the same start and actions."""

    def __init__(self, task: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # 1 s: only who simulates pays for it

        self.task = get_task(task)
        self._measure = MEASURES[self.task.distance]
        env: Any = ALL_V3_ENVIRONMENTS[task]()
        env._partially_observable = False
        # The observation space was cached with the goal hidden; `step` would clip the goal to zero.
        del env.sawyer_observation_space
        env._set_task_called = True
        env._freeze_rand_vec = True
        self.env = env
        self._scratch = mujoco.MjData(env.model)
        self.num_steps = 0
        self.state = np.full(39, np.nan)
        self.distance = np.nan

    @property
    def steps_left(self) -> int:
        """Steps until the horizon."""
        return HORIZON - self.num_steps

    def reset(self, start: Start) -> np.ndarray:
        """Reset to ``start`` and return the state, float64 (39,).

        Raises:
            StartError: The start is of another task, or Meta-World would never accept it.
        """
        start.check_is_of(self.task.name)
        self.task.check(start.array)
        self.env._last_rand_vec = start.array
        self.state, _ = self.env.reset()
        self.distance = self._initial_distance()
        self.num_steps = 0
        return self.state

    def _initial_distance(self) -> float:
        """Measure the distance at reset, where Meta-World's first state still shows some objects where they were.

        The kinematics are brought up to date in a copy: in the original that would change the last bits of what
        follows.
        """
        env, data = self.env, self.env.data
        env.data = self._scratch
        try:
            mujoco.mj_setState(env.model, env.data, self._get_physics(data), _PHYSICS)
            mujoco.mj_forward(env.model, env.data)
            return self._measure(env, env._get_curr_obs_combined_no_goal())
        finally:
            env.data = data

    def step_chunk(self, actions: np.ndarray) -> Segment:
        """Carry out ``actions``, float32 (T, 4), clipped to [-1, 1], or as many as the horizon still allows."""
        actions = np.clip(np.asarray(actions, dtype=np.float32), -1.0, 1.0)[: self.steps_left]
        num = len(actions)
        segment = Segment(
            state=np.empty((num, 39)), reward=np.empty(num), success=np.empty(num, dtype=bool), distance=np.empty(num)
        )
        for t, action in enumerate(actions):
            state, reward, _, _, info = self.env.step(action)
            segment.state[t] = state
            segment.reward[t] = reward
            segment.success[t] = bool(info["success"])
            segment.distance[t] = self._measure(self.env, state)
        if num:
            self.num_steps += num
            self.state, self.distance = segment.state[-1], float(segment.distance[-1])
        return segment

    @property
    def physics_dim(self) -> int:
        """P: numbers in MuJoCo's full integration state."""
        return int(mujoco.mj_stateSize(self.env.model, _PHYSICS))

    def physics(self) -> np.ndarray:
        """Return MuJoCo's full integration state, float64 (P,); with the start, all that a picture needs."""
        return self._get_physics(self.env.data)

    def _get_physics(self, data: mujoco.MjData) -> np.ndarray:
        physics = np.empty(self.physics_dim)
        mujoco.mj_getState(self.env.model, data, physics, _PHYSICS)
        return physics

    def set_physics(self, physics: np.ndarray) -> None:
        """Put MuJoCo into a state that :meth:`physics` returned, for rendering; stepping on from it is undefined."""
        mujoco.mj_setState(self.env.model, self.env.data, physics, _PHYSICS)
        mujoco.mj_forward(self.env.model, self.env.data)
