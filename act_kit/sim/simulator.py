"""Meta-World as a simulator that resets to exactly the start it is told, and steps a chunk of actions at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from act_kit.arrays import as_array
from act_kit.config import SimConfig
from act_kit.errors import InitialStateError
from act_kit.sim.engine import PHYSICS, Engine, EngineState, StepBatch, get_physics
from act_kit.sim.fast import FastEngine
from act_kit.sim.initial_states import InitialState
from act_kit.sim.reference import ReferenceEngine
from act_kit.sim.tasks import ACTION_DIM, HORIZON, STATE_DIM, get_task
from act_kit.sim.threads import Exclusive

ENGINES: dict[str, Callable[[str], Engine]] = {"fast": FastEngine, "reference": ReferenceEngine}
"""Engines by the name that ``sim.engine`` takes. They give the same numbers; ``reference`` is Meta-World's own code."""


@dataclass(frozen=True, kw_only=True)
class SimulatorState:
    """A moment of an episode, from which any simulator of the task continues to the bit; can be pickled.

    Attributes:
        start: The initial state of the episode.
        num_steps: Steps since then.
        state: float64 (39,), the observation.
        distance: See :mod:`act_kit.sim.distance`.
        engine: Everything else that decides what follows.
    """

    init_state: InitialState
    num_steps: int
    state: np.ndarray
    distance: float
    engine: EngineState


class Simulator:
    """One Meta-World task, reset to starts and stepped by chunks; bit-exact from the same start and actions.

    One simulator is one episode at a time, so one thread at a time: a call while another thread is inside is an
    :class:`~act_kit.errors.InUseError`. Several simulators may be used by several threads; those of one task take
    turns. A copy (``copy.copy``, ``copy.deepcopy``, ``pickle``) is a simulator of its own in the same state. To come
    back to a moment of an episode, also in another simulator, thread or process::

        moment = simulator.save()
        simulator.step_chunk(actions)
        simulator.restore(moment)
    """

    def __init__(self, task: str, engine: str = "fast") -> None:
        SimConfig(engine=engine)  # refuses an unknown one
        self.task = get_task(task)
        self.engine = ENGINES[engine](task)
        self.init_state: InitialState | None = None
        self.num_steps = 0
        self.state = np.full(STATE_DIM, np.nan)
        self.distance = np.nan
        self._exclusive = _one_thread()

    def __getstate__(self) -> dict[str, Any]:
        with self._exclusive:
            return {**vars(self), "engine": copy.copy(self.engine), "_exclusive": None}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes, _exclusive=_one_thread())

    @property
    def steps_left(self) -> int:
        """Steps until the horizon."""
        return HORIZON - self.num_steps

    def reset(self, init_state: InitialState) -> np.ndarray:
        """Reset to ``init_state`` and return the state, float64 (39,).

        Raises:
            StartError: The start is of another task, or Meta-World would never accept it.
        """
        if not isinstance(init_state, InitialState):
            raise InitialStateError(
                f"A simulator is reset to a Start, not to {type(init_state).__name__}. "
                f"Fix: Start.of('{self.task.name}', rand_vec)"
            )
        init_state.check_is_of(self.task.name)
        self.task.check(init_state.array)
        with self._exclusive:
            self.init_state = None  # until it has succeeded
            self.state, self.distance = self.engine.reset(init_state.array)
            self.init_state = init_state
            self.num_steps = 0
            return self.state

    def step_chunk(self, actions: np.ndarray, *, rewards: bool = False) -> StepBatch:
        """Carry out ``actions`` (T, 4), clipped to [-1, 1], or as many as the horizon still allows.

        ``rewards`` asks for Meta-World's dense reward too, which takes longer than the step itself.

        Raises:
            ArrayError: The actions are no finite numbers of that shape.
            StartError: There is no episode yet.
        """
        actions = as_actions(actions)
        with self._exclusive:
            self._require_episode()
            actions = actions[: self.steps_left]
            if not len(actions):
                return _nothing(rewards)
            step_batch = self.engine.step(actions, rewards=rewards)
            self.num_steps += len(step_batch)
            self.state, self.distance = step_batch.state[-1], float(step_batch.distance[-1])
            return step_batch

    def save(self) -> SimulatorState:
        """Return this moment of the episode, for :meth:`restore`.

        Raises:
            StartError: There is no episode yet.
        """
        with self._exclusive:
            return SimulatorState(
                init_state=self._require_episode(),
                num_steps=self.num_steps,
                state=self.state.copy(),
                distance=self.distance,
                engine=self.engine.save(),
            )

    def restore(self, moment: SimulatorState) -> np.ndarray:
        """Return to a moment that this simulator or another of the task has saved; return the state, float64 (39,).

        What follows is what followed then, to the bit. Within an episode this takes as long as a step; from another
        episode, as long as a reset.

        Raises:
            StartError: It is of another task, or of another version of the simulator.
        """
        if not isinstance(moment, SimulatorState):
            raise InitialStateError(
                f"A simulator restores what simulator.save() returned, not {type(moment).__name__}."
            )
        moment.init_state.check_is_of(self.task.name)
        if moment.engine.physics.shape != (self.physics_dim,):
            raise InitialStateError(
                f"The saved state has {moment.engine.physics.size} numbers of physics; {self.physics_dim} were "
                "expected. Fix: restore it with the version of MuJoCo that saved it."
            )
        with self._exclusive:
            self.init_state = None  # until it has succeeded
            self.engine.restore(moment.init_state.array, moment.num_steps, moment.engine)
            self.init_state, self.num_steps = moment.init_state, moment.num_steps
            self.state, self.distance = moment.state.copy(), moment.distance
            return self.state

    @property
    def physics_dim(self) -> int:
        """P: numbers in MuJoCo's full integration state."""
        return int(mujoco.mj_stateSize(self.engine.model, PHYSICS))

    def physics(self) -> np.ndarray:
        """Return MuJoCo's full integration state, float64 (P,); with the start, all that a picture needs."""
        with self._exclusive:
            return get_physics(self.engine.model, self.engine.data)

    def _require_episode(self) -> InitialState:
        if self.init_state is None:
            raise InitialStateError("This simulator has no episode yet. Fix: simulator.reset(start)")
        return self.init_state


def as_actions(actions: np.ndarray, what: str = "actions") -> np.ndarray:
    """Return actions as float32 (T, 4), clipped to [-1, 1].

    Raises:
        ArrayError: They are no finite numbers of that shape.
    """
    is_plain = type(actions) is np.ndarray and actions.dtype == np.float32 and actions.shape[1:] == (ACTION_DIM,)
    if not (is_plain and np.isfinite(actions).all()):  # as all of act_kit's own are; asking more takes 5 µs
        actions = as_array(actions, what, ("T", ACTION_DIM), fix="actions[None] makes a chunk of one action")
    clipped: np.ndarray = np.minimum(np.maximum(actions, -1.0), 1.0).astype(np.float32, copy=False)
    return clipped


def _nothing(rewards: bool) -> StepBatch:
    """Return a segment of no steps."""
    empty = np.empty(0)
    return StepBatch(
        state=np.empty((0, STATE_DIM)), success=empty.astype(bool), distance=empty, reward=empty if rewards else None
    )


def _one_thread() -> Exclusive:
    return Exclusive("simulator", "make one for each thread; those of a task share their memory.")
