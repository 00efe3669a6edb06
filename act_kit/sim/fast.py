"""The fast engine: Meta-World's model, resets and rewards around a step that does nothing but the physics.

Of Meta-World's step, a third to five sixths is Python that imitation learning does not need: contacts searched in
lists, names looked up, rewards shaped. Here a step is five of MuJoCo's, the forward pass that Meta-World adds (it sets
where the next step's solver begins: without it the last bits would differ), and a few copies. What comes out is what
:class:`~act_kit.sim.reference.ReferenceEngine` gives, to the bit; ``benchmarks/sameness.py`` proves it on all 50 tasks.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np

from act_kit.sim.distance import Measurements, evaluate_step
from act_kit.sim.engine import (
    PHYSICS,
    EngineState,
    StepBatch,
    get_numbers,
    get_physics,
    make_environment,
    set_physics,
)
from act_kit.sim.observation import Observer, Recorder
from act_kit.sim.tasks import get_task


class _World:
    """What the simulators of one task in one process share; each would need 26 MB and 0.2 s of its own.

    Attributes:
        env: The environment that each engine's own is a copy of.
        model: The compiled model. A start moves bodies and sites in it, so it is one engine's at a time.
        lock: Held by the thread that uses the model, or anything else in here; MuJoCo steps without the interpreter's.
        owner: The engine whose bodies it holds now.
        settled: The state that the hand last came to rest in, if it may be of use again ...
        settled_from: ... and all that it depended on.
    """

    def __init__(self, task: str) -> None:
        self.env = make_environment(task)
        self.model: mujoco.MjModel = self.env.model
        self.lock = threading.RLock()
        self.observer = Observer(task, self.model)
        self.scratch = mujoco.MjData(self.model)
        self.owner: weakref.ref[FastEngine] | None = None
        self.settled: mujoco.MjData | None = None
        self.settled_from: tuple[bytes, ...] = ()


_worlds: weakref.WeakValueDictionary[str, _World] = weakref.WeakValueDictionary()
_worlds_lock = threading.Lock()


def _get_world(task: str) -> _World:
    with _worlds_lock:
        world = _worlds.get(task)
        if world is None:
            world = _worlds[task] = _World(task)
        return world


class FastEngine:
    """One environment of a task.

    Those of one process share their model, one at a time: engines of one task that step in several threads take turns,
    chunk by chunk; engines of different tasks step in parallel. Copied or pickled, it is an engine of its own in the
    same state.
    """

    def __init__(self, task: str) -> None:
        self._world = _get_world(task)
        with self._world.lock:
            self._attach(task)

    def _attach(self, task: str) -> None:
        world = self._world
        self._task = get_task(task)
        self._observer = world.observer
        env = object.__new__(type(world.env))
        env.__dict__.update(world.env.__dict__)
        # Weakly, or the two would keep each other, and megabytes of MuJoCo's, until the garbage collector comes by.
        this = weakref.ref(self)
        env._reset_hand = lambda steps=50: this()._reset_hand(steps)  # type: ignore[union-attr]
        self._env: Any = env
        self._places = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._low, self._high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self._hand_stays = False
        self._rand_vec: np.ndarray | None = None
        self._previous = np.full(18, np.nan)
        self._set_data(mujoco.MjData(self.model))

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model, shared; :meth:`hold_model` to use it."""
        return self._world.model

    @property
    def data(self) -> mujoco.MjData:
        """MuJoCo's state; another object after each reset."""
        return self._env.data

    def _set_data(self, data: mujoco.MjData) -> None:
        env = self._env
        env.data = data
        # Views, despite their names: rewards of tasks that do not set them at reset see where the pads are now.
        env.init_left_pad, env.init_right_pad = env.get_body_com("leftpad"), env.get_body_com("rightpad")
        self._recorder = Recorder(self._observer.fields, data)
        self._mocap, self._ctrl = data.mocap_pos[0], data.ctrl

    @contextmanager
    def hold_model(self) -> Generator[mujoco.MjModel]:
        """Hold the shared model, with this engine's bodies and sites in it; see :class:`~act_kit.sim.engine.Engine`."""
        with self._world.lock:
            self._bind_model()
            yield self._world.model

    def _bind_model(self) -> None:
        """Put this engine's bodies and sites into the shared model, if another's are there. The caller has the lock."""
        world = self._world
        if world.owner is None or world.owner() is not self:
            world.model.body_pos[:], world.model.site_pos[:] = self._places
            world.owner = weakref.ref(self)

    # -- its state -------------------------------------------------------------------------------------------------

    def save(self) -> EngineState:
        """Return a copy of the state."""
        physics = get_physics(self.model, self.data)
        return EngineState(physics=physics, previous=self._previous.copy(), numbers=get_numbers(self._env))

    def restore(self, rand_vec: np.ndarray, num_steps: int, state: EngineState) -> None:
        """Return to a saved state; see :class:`~act_kit.sim.engine.Engine`."""
        with self.hold_model() as model:
            if self._rand_vec is None or not np.array_equal(self._rand_vec, rand_vec):
                self.reset(rand_vec)
            set_physics(model, self.data, state.physics)
        self._previous = state.previous.copy()
        vars(self._env).update(state.numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self._task.name, "rand_vec": self._rand_vec, "state": self.save()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(saved["task"])  # type: ignore[misc]
        if saved["rand_vec"] is not None:
            self.restore(saved["rand_vec"], 0, saved["state"])

    # -- reset -----------------------------------------------------------------------------------------------------

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``; see :class:`~act_kit.sim.engine.Engine`."""
        with self.hold_model():
            return self._reset(rand_vec)

    def _reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        env = self._env
        self._rand_vec = None  # until it has succeeded
        env._last_rand_vec = rand_vec
        # Meta-World resets twice. All that remains of the first time are the bodies it moved, which in 14 tasks the
        # second one feels; so the first needs none of its physics.
        for self._hand_stays in (True, False):
            mujoco.mj_resetData(self.model, self.data)
            if self._hand_stays:
                mujoco.mj_forward(self.model, self.data)  # some look at where things are
            state = env.reset_model().astype(np.float64)
        self._previous = state[:18].copy()
        state[18:36] = self._previous
        self._places = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._rand_vec = rand_vec
        return state, self._initial_distance()

    def _reset_hand(self, steps: int) -> None:
        """Take the hand where episodes begin, 250 steps of physics, unless the same ones were done just before."""
        env, model, data = self._env, self.model, self.data
        if not self._hand_stays:
            world = self._world
            key = model.body_pos.tobytes(), get_physics(model, data).tobytes(), env.hand_init_pos.tobytes()
            if key == world.settled_from and world.settled is not None:
                self._set_data(copy.copy(world.settled))
            else:
                data.mocap_pos[:] = env.hand_init_pos
                data.mocap_quat[:] = (1, 0, 1, 0)
                data.ctrl[:] = (-1, 1)
                mujoco.mj_step(model, data, steps * env.frame_skip)
                # Kept when it comes up twice running: in the tasks whose starts move bodies it never would.
                world.settled = copy.copy(data) if key == world.settled_from else None
                world.settled_from = key
        type(env)._reset_hand(env, steps=0)  # for what else it does

    def _initial_distance(self) -> float:
        """Measure the distance at reset, where Meta-World's first state still shows some objects where they were.

        The kinematics are brought up to date in a copy: in the original that would change the last bits of what
        follows.
        """
        scratch = self._world.scratch
        mujoco.mj_setState(self.model, scratch, get_physics(self.model, self.data), PHYSICS)
        mujoco.mj_forward(self.model, scratch)
        recorder = Recorder(self._observer.fields, scratch)
        recorder.begin(1)
        recorder.take(0)
        now = self._observer.observe(recorder.copies)
        state = np.concatenate([now, now, self._env._target_pos[None]], axis=1)
        return float(evaluate_step(self._task, self._measurements(recorder, state, np.zeros(1, dtype=bool)))[0][0])

    # -- step ------------------------------------------------------------------------------------------------------

    def step(self, actions: np.ndarray, *, rewards: bool) -> StepBatch:
        """Carry out actions, float32 (T, 4) in [-1, 1]; with rewards, one at a time."""
        with self._world.lock:
            self._bind_model()
            if not rewards:
                return self._step(actions)
            steps = [self._step_with_reward(action[None]) for action in actions]
        return StepBatch(
            **{
                name: np.concatenate([getattr(step, name) for step in steps])
                for name in ("state", "success", "distance", "reward")
            }
        )

    def _step_with_reward(self, action: np.ndarray) -> StepBatch:
        step = self._step(action)
        reward, _ = self._env.evaluate_state(step.state[0], action[0])
        return replace(step, reward=np.array([reward], dtype=np.float64))

    def _step(self, actions: np.ndarray) -> StepBatch:
        env, model, data, mocap, ctrl = self._env, self.model, self.data, self._mocap, self._ctrl
        num = len(actions)
        moves = (actions[:, :3] * env.action_scale).astype(np.float64)  # multiplied in float32, as Meta-World does
        efforts = np.empty((num, 2))
        efforts[:, 0] = actions[:, 3]
        efforts[:, 1] = -actions[:, 3]
        low, high, frame_skip = env.mocap_low, env.mocap_high, env.frame_skip
        recorder, observer = self._recorder, self._observer
        recorder.begin(num)
        grasped = np.zeros(num, dtype=bool)
        data.mocap_quat[:] = (1, 0, 1, 0)
        for t in range(num):
            np.add(mocap, moves[t], out=mocap)
            np.minimum(np.maximum(mocap, low, out=mocap), high, out=mocap)
            ctrl[:] = efforts[t]
            mujoco.mj_step(model, data, frame_skip)
            mujoco.mj_forward(model, data)
            recorder.take(t)
            if observer.asks_for_grasp:
                grasped[t] = observer.grasped(data)
        now = observer.observe(recorder.copies)
        state = np.empty((num, 39))
        state[:, :18] = now
        state[:1, 18:36] = self._previous
        state[1:, 18:36] = now[:-1]
        state[:, 36:] = env._target_pos
        np.minimum(np.maximum(state, self._low, out=state), self._high, out=state)
        self._previous = now[-1]
        distance, success = evaluate_step(self._task, self._measurements(recorder, state, grasped))
        return StepBatch(state=state, success=success, distance=distance, reward=None)

    def _measurements(self, recorder: Recorder, state: np.ndarray, grasped: np.ndarray) -> Measurements:
        return Measurements(
            state=state, target=self._env._target_pos, probe=self._observer.probe(recorder.copies), grasped=grasped
        )
