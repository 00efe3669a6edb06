"""Simulator of Meta-World that resets to a given initial state and steps a chunk of actions at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np

from act_kit.arrays import as_array
from act_kit.config.simulation import SimConfig
from act_kit.errors import InitialStateError
from act_kit.sim.engine import INFO_KEYS, NO_STEPS, PHYSICS, Engine, EngineState, StepBatch, clip_actions, get_physics
from act_kit.sim.fast import FastEngine
from act_kit.sim.initial_states import InitialState
from act_kit.sim.reference import ReferenceEngine
from act_kit.sim.tasks import ACTION_DIM, HORIZON, STATE_DIM, get_task
from act_kit.sim.threads import SingleThreadGuard

ENGINES: dict[str, Callable[[str], Engine]] = {"fast": FastEngine, "reference": ReferenceEngine}
"""Engines by name, as in ``sim.engine``. Their results are bit-exact; ``reference`` is Meta-World's own code."""


@dataclass(frozen=True, kw_only=True)
class SimulatorState:
    """State of a simulator within an episode, from which any simulator of the task continues bit-exactly.

    It can be pickled.

    Attributes:
        init_state: Initial state of the episode.
        num_steps: Number of steps since the reset.
        state: float64 (39,), the observation.
        distance: Distance to the goal; see :mod:`act_kit.sim.distance`.
        engine: State of the engine.
    """

    init_state: InitialState
    num_steps: int
    state: np.ndarray
    distance: float
    engine: EngineState


class Simulator:
    """Simulator of one Meta-World task; the same initial state and actions give bit-exact results.

    A simulator runs one episode at a time, in one thread at a time: a call during a call from another thread raises
    :class:`~act_kit.errors.InUseError`. Several threads can use several simulators; simulators of one task alternate. A
    copy (``copy.copy``, ``copy.deepcopy``, ``pickle``) is an independent simulator in the same state. To return to an
    earlier state of an episode, also in another simulator, thread or process::

        saved = simulator.save()
        simulator.step_chunk(actions)
        simulator.restore(saved)
    """

    def __init__(self, task: str, engine: str = "fast") -> None:
        SimConfig(engine=engine)  # raises if the engine is unknown
        self.task = get_task(task)
        self.engine = ENGINES[engine](task)
        self.init_state: InitialState | None = None
        self.num_steps = 0
        self.state = np.full(STATE_DIM, np.nan)
        self.distance = np.nan
        self._exclusive = _make_exclusive()

    def __getstate__(self) -> dict[str, Any]:
        with self._exclusive:
            return {**vars(self), "engine": copy.copy(self.engine), "_exclusive": None}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes, _exclusive=_make_exclusive())

    @property
    def steps_left(self) -> int:
        """Number of steps until the horizon."""
        return HORIZON - self.num_steps

    def reset(self, init_state: InitialState) -> np.ndarray:
        """Reset to ``init_state`` and return the state, float64 (39,).

        Raises:
            InitialStateError: The initial state is of another task, or the task cannot be reset to it.
        """
        if not isinstance(init_state, InitialState):
            raise InitialStateError(
                f"A simulator cannot be reset to {type(init_state).__name__}: expected an InitialState. "
                f"Fix: InitialState.of('{self.task.name}', rand_vec)"
            )
        init_state.check_is_of(self.task.name)
        self.task.check(init_state.array)
        with self._exclusive:
            self.init_state = None  # until the reset has succeeded
            self.state, self.distance = self.engine.reset(init_state.array)
            self.init_state = init_state
            self.num_steps = 0
            return self.state

    def settle(self, num_steps: int) -> None:
        """Execute zero actions, with which some evaluation protocols begin; they count as steps up to the horizon."""
        if num_steps:
            self.step_chunk(np.zeros((num_steps, ACTION_DIM), dtype=np.float32), rewards=True)  # as Meta-World does

    def step_chunk(self, actions: np.ndarray, *, rewards: bool = False, physics: bool = False) -> StepBatch:
        """Execute ``actions`` (T, 4), clipped to [-1, 1], up to the horizon.

        ``rewards=True`` also computes Meta-World's dense reward and ``info``, which takes about as long as the step.
        ``physics=True`` also records the physics state before each action.

        Raises:
            ArrayError: The actions are not finite numbers of this shape.
            InitialStateError: The simulator was never reset.
        """
        return self.execute(as_actions(actions), rewards=rewards, physics=physics)

    def execute(self, actions: np.ndarray, *, rewards: bool = False, physics: bool = False) -> StepBatch:
        """Execute actions, float32 (T, 4) in [-1, 1], without checking them; see :meth:`step_chunk`."""
        with self._exclusive:
            self._require_episode()
            actions = actions[: self.steps_left]
            if not len(actions):
                no_physics = np.empty((0, self.physics_dim)) if physics else None
                no_info = np.empty((0, len(INFO_KEYS))) if rewards else None
                no_reward = np.empty(0) if rewards else None
                return replace(NO_STEPS, reward=no_reward, info=no_info, physics=no_physics)
            step_batch = self.engine.step(actions, rewards=rewards, physics=physics)
            self.num_steps += len(actions)
            self.state, self.distance = step_batch.state[-1], float(step_batch.distance[-1])
            return step_batch

    def save(self) -> SimulatorState:
        """Return the current state of the episode, for :meth:`restore`.

        Raises:
            InitialStateError: The simulator was never reset.
        """
        with self._exclusive:
            return SimulatorState(
                init_state=self._require_episode(),
                num_steps=self.num_steps,
                state=self.state.copy(),
                distance=self.distance,
                engine=self.engine.save(),
            )

    def restore(self, saved: SimulatorState) -> np.ndarray:
        """Restore a state that a simulator of the task has saved; return the observation, float64 (39,).

        The episode continues bit-exactly. Within an episode this takes as long as a step; from another episode, as long
        as a reset.

        Raises:
            InitialStateError: The state is of another task, or of another version of MuJoCo.
        """
        if not isinstance(saved, SimulatorState):
            raise InitialStateError(
                f"A simulator cannot restore {type(saved).__name__}: expected the result of simulator.save()."
            )
        saved.init_state.check_is_of(self.task.name)
        if saved.engine.physics.shape != (self.physics_dim,):
            raise InitialStateError(
                f"The saved state has {saved.engine.physics.size} numbers of physics: expected {self.physics_dim}. "
                "Fix: restore it with the version of MuJoCo that saved it."
            )
        with self._exclusive:
            self.init_state = None  # until the state is restored
            self.engine.restore(saved.init_state.array, saved.num_steps, saved.engine)
            self.init_state, self.num_steps = saved.init_state, saved.num_steps
            self.state, self.distance = saved.state.copy(), saved.distance
            return self.state

    @property
    def physics_dim(self) -> int:
        """Size P of MuJoCo's full integration state."""
        return int(mujoco.mj_stateSize(self.engine.model, PHYSICS))

    def physics(self) -> np.ndarray:
        """Return MuJoCo's full integration state, float64 (P,).

        Together with the initial state, it is sufficient to render an image.
        """
        with self._exclusive:
            return get_physics(self.engine.model, self.engine.data)

    def _require_episode(self) -> InitialState:
        if self.init_state is None:
            raise InitialStateError("The simulator has no episode yet. Fix: simulator.reset(init_state)")
        return self.init_state


def as_actions(actions: np.ndarray, what: str = "actions") -> np.ndarray:
    """Return actions as float32 (T, 4), clipped to [-1, 1].

    Raises:
        ArrayError: They are not finite numbers of this shape.
    """
    is_plain = type(actions) is np.ndarray and actions.dtype == np.float32 and actions.shape[1:] == (ACTION_DIM,)
    if not (is_plain and np.isfinite(actions).all()):  # true for act_kit's own actions; the full check takes 5 µs
        actions = as_array(actions, what, ("T", ACTION_DIM), fix="actions[None] makes a chunk of one action")
    return clip_actions(actions)


def _make_exclusive() -> SingleThreadGuard:
    return SingleThreadGuard("simulator", "make one for each thread; simulators of one task share their memory.")
