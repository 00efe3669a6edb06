"""The fast engine: Meta-World's model, resets and rewards, with a step that computes only the physics.

Between a third and five sixths of Meta-World's step is Python code that imitation learning does not need: it searches
contacts in lists, looks up names and shapes rewards. Here a step is five MuJoCo steps, the forward pass that Meta-World
adds (it sets the initial point of the next step's solver: without it the last bits would differ), and a few copies. The
results are bit-exact with :class:`~act_kit.sim.reference.ReferenceEngine`; ``benchmarks/sameness.py`` verifies this on
all 50 tasks.
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
from act_kit.sim.engine import INFO_KEYS, PHYSICS, Engine, StepBatch, concatenate, get_physics, make_environment
from act_kit.sim.observation import Observer, Recorder


class _SharedModel:
    """Model and buffers shared by the engines of one task in one process, which saves 26 MB and 0.2 s per engine.

    Attributes:
        env: The Meta-World environment; each engine uses a shallow copy of it.
        model: The compiled model. Initial states move its bodies and sites, so one engine uses it at a time.
        lock: Lock for the model and all other attributes; MuJoCo steps without the global interpreter lock.
        owner: The engine to whose initial state the model is currently set.
        settled: Cached state after the hand's last motion to its initial position, or None if it is unlikely to recur.
        settled_key: Inputs that the cached state depends on.
    """

    def __init__(self, task: str) -> None:
        self.env = make_environment(task)
        self.model: mujoco.MjModel = self.env.model
        self.lock = threading.RLock()
        self.observer = Observer(task, self.model)
        self.physics_dim = mujoco.mj_stateSize(self.model, PHYSICS)
        self.scratch = mujoco.MjData(self.model)
        self.owner: weakref.ref[FastEngine] | None = None
        self.settled: mujoco.MjData | None = None
        self.settled_key: tuple[bytes, ...] = ()


_shared_models: weakref.WeakValueDictionary[str, _SharedModel] = weakref.WeakValueDictionary()
_shared_models_lock = threading.Lock()


def _get_shared_model(task: str) -> _SharedModel:
    with _shared_models_lock:
        shared = _shared_models.get(task)
        if shared is None:
            shared = _shared_models[task] = _SharedModel(task)
        return shared


class FastEngine(Engine):
    """One environment of a task.

    The engines of one task in one process share a model, so engines of one task that step in several threads alternate
    chunk by chunk; engines of different tasks step in parallel.
    """

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self._shared = _get_shared_model(task)
        with self._shared.lock:
            self._attach()

    def _attach(self) -> None:
        shared = self._shared
        self._observer = shared.observer
        env = object.__new__(type(shared.env))
        env.__dict__.update(shared.env.__dict__)
        # A weak reference: a reference cycle would keep megabytes of MuJoCo data alive until garbage collection.
        engine = weakref.ref(self)
        env._reset_hand = lambda steps=50: engine()._reset_hand(steps)  # type: ignore[union-attr]
        # Meta-World copies every contact into Python, four times: half of a step with reward.
        env.touching_object = lambda geom: engine()._observer.touching(engine().data, geom)  # type: ignore[union-attr]
        self._env: Any = env
        self._positions = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._low, self._high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self._skip_hand_motion = False
        self._previous = np.full(18, np.nan)
        self._set_data(mujoco.MjData(self.model))

    def _set_data(self, data: mujoco.MjData) -> None:
        env = self._env
        env.data = data
        # Views of current positions, despite their names; rewards of tasks that do not set them at reset use them.
        env.init_left_pad, env.init_right_pad = env.get_body_com("leftpad"), env.get_body_com("rightpad")
        self._recorder = Recorder(self._observer.fields, data)
        self._mocap, self._ctrl = data.mocap_pos[0], data.ctrl

    @contextmanager
    def hold_model(self) -> Generator[mujoco.MjModel]:
        """Lock the shared model, set to this engine's initial state; see :class:`~act_kit.sim.engine.Engine`."""
        with self._shared.lock:
            self._bind_model()
            yield self._shared.model

    def _bind_model(self) -> None:
        """Set the shared model to this engine's body and site positions. The caller must hold the lock."""
        shared = self._shared
        if shared.owner is None or shared.owner() is not self:
            shared.model.body_pos[:], shared.model.site_pos[:] = self._positions
            shared.owner = weakref.ref(self)

    # -- reset -----------------------------------------------------------------------------------------------------

    def reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        """Reset to ``rand_vec``; see :class:`~act_kit.sim.engine.Engine`."""
        with self.hold_model():
            return self._reset(rand_vec)

    def _reset(self, rand_vec: np.ndarray) -> tuple[np.ndarray, float]:
        env = self._env
        self._rand_vec = None  # until the reset has succeeded
        env._last_rand_vec = rand_vec
        # Meta-World resets twice. The only effect of the first reset are the bodies it moved, which change the second
        # reset in 14 tasks; so the first reset needs no physics.
        for self._skip_hand_motion in (True, False):
            mujoco.mj_resetData(self.model, self.data)
            if self._skip_hand_motion:
                mujoco.mj_forward(self.model, self.data)  # some tasks read object positions
            state = env.reset_model().astype(np.float64)
        self._previous = state[:18].copy()
        state[18:36] = self._previous
        self._positions = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._rand_vec = rand_vec
        return state, self._initial_distance()

    def _reset_hand(self, steps: int) -> None:
        """Move the hand to its initial position, 250 physics steps, or reuse the result of the same motion."""
        env, model, data = self._env, self.model, self.data
        if not self._skip_hand_motion:
            shared = self._shared
            key = model.body_pos.tobytes(), get_physics(model, data).tobytes(), env.hand_init_pos.tobytes()
            if key == shared.settled_key and shared.settled is not None:
                self._set_data(copy.copy(shared.settled))
            else:
                data.mocap_pos[:] = env.hand_init_pos
                data.mocap_quat[:] = (1, 0, 1, 0)
                data.ctrl[:] = (-1, 1)
                mujoco.mj_step(model, data, steps * env.frame_skip)
                # Cached if the key occurs twice in a row: never in tasks whose initial states move bodies.
                shared.settled = copy.copy(data) if key == shared.settled_key else None
                shared.settled_key = key
        type(env)._reset_hand(env, steps=0)  # for its other effects

    def _initial_distance(self) -> float:
        """Return the distance at reset; in some tasks Meta-World's first state shows outdated object positions.

        The kinematics are updated in a copy, because an update of the original would change the last bits of the
        following steps.
        """
        scratch = self._shared.scratch
        mujoco.mj_setState(self.model, scratch, get_physics(self.model, self.data), PHYSICS)
        mujoco.mj_forward(self.model, scratch)
        recorder = Recorder(self._observer.fields, scratch)
        recorder.begin(1)
        recorder.take(0)
        current = self._observer.observe(recorder.copies)
        state = np.concatenate([current, current, self._env._target_pos[None]], axis=1)
        return float(evaluate_step(self._task, self._measurements(recorder, state, np.zeros(1, dtype=bool)))[0][0])

    # -- step ------------------------------------------------------------------------------------------------------

    def step(self, actions: np.ndarray, *, rewards: bool, physics: bool = False) -> StepBatch:
        """Execute actions; see :class:`~act_kit.sim.engine.Engine`."""
        with self._shared.lock:
            self._bind_model()
            if not rewards:
                return self._step(actions, physics=physics)
            batches: list[StepBatch] = []
            reward, infos = np.empty(len(actions)), np.empty((len(actions), len(INFO_KEYS)))
            # One at a time, because a reward depends on the physics after its step.
            for t, action in enumerate(actions):
                batches.append(self._step(action[None], physics=physics))
                reward[t], info = self._env.evaluate_state(batches[t].state[0], action)
                infos[t] = [info[key] for key in INFO_KEYS]
            return replace(concatenate(batches), reward=reward, info=infos)

    def _step(self, actions: np.ndarray, *, physics: bool) -> StepBatch:
        env, model, data, mocap, ctrl = self._env, self.model, self.data, self._mocap, self._ctrl
        num = len(actions)
        moves = (actions[:, :3] * env.action_scale).astype(np.float64)  # multiplied in float32, as in Meta-World
        efforts = np.empty((num, 2))
        efforts[:, 0] = actions[:, 3]
        efforts[:, 1] = -actions[:, 3]
        low, high, frame_skip = env.mocap_low, env.mocap_high, env.frame_skip
        recorder, observer = self._recorder, self._observer
        recorder.begin(num)
        grasped = np.zeros(num, dtype=bool)
        before = np.empty((num, self._shared.physics_dim)) if physics else None
        for t in range(num):
            if before is not None:
                mujoco.mj_getState(model, data, before[t], PHYSICS)
            data.mocap_quat[:] = (1, 0, 1, 0)
            np.add(mocap, moves[t], out=mocap)
            np.minimum(np.maximum(mocap, low, out=mocap), high, out=mocap)
            ctrl[:] = efforts[t]
            mujoco.mj_step(model, data, frame_skip)
            mujoco.mj_forward(model, data)
            recorder.take(t)
            if observer.needs_grasp:
                grasped[t] = observer.grasped(data)
        current = observer.observe(recorder.copies)
        state = np.empty((num, 39))
        state[:, :18] = current
        state[:1, 18:36] = self._previous
        state[1:, 18:36] = current[:-1]
        state[:, 36:] = env._target_pos
        np.minimum(np.maximum(state, self._low, out=state), self._high, out=state)
        self._previous = current[-1]
        distance, success = evaluate_step(self._task, self._measurements(recorder, state, grasped))
        return StepBatch(state=state, success=success, distance=distance, reward=None, physics=before)

    def _measurements(self, recorder: Recorder, state: np.ndarray, grasped: np.ndarray) -> Measurements:
        return Measurements(
            state=state, target=self._env._target_pos, probe=self._observer.probe(recorder.copies), grasped=grasped
        )
