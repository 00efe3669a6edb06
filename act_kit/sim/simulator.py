"""Meta-World as a simulator that resets to exactly the start it is told, and steps a chunk of actions at a time."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np

from act_kit.config import SimConfig
from act_kit.sim.engine import PHYSICS, Engine, Segment, get_physics
from act_kit.sim.fast import FastEngine
from act_kit.sim.reference import ReferenceEngine
from act_kit.sim.starts import Start
from act_kit.sim.tasks import HORIZON, STATE_DIM, get_task

ENGINES: dict[str, Callable[[str], Engine]] = {"fast": FastEngine, "reference": ReferenceEngine}
"""Engines by the name that ``sim.engine`` takes. They give the same numbers; ``reference`` is Meta-World's own code."""


class Simulator:
    """One Meta-World task, reset to starts and stepped by chunks; bit-exact from the same start and actions."""

    def __init__(self, task: str, engine: str = "fast") -> None:
        SimConfig(engine=engine)  # refuses an unknown one
        self.task = get_task(task)
        self.engine = ENGINES[engine](task)
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
        self.state, self.distance = self.engine.reset(start.array)
        self.num_steps = 0
        return self.state

    def step_chunk(self, actions: np.ndarray, *, rewards: bool = False) -> Segment:
        """Carry out ``actions``, float32 (T, 4), clipped to [-1, 1], or as many as the horizon still allows.

        ``rewards`` asks for Meta-World's dense reward too, which takes longer than the step itself.
        """
        actions = np.minimum(np.maximum(np.asarray(actions[: self.steps_left], dtype=np.float32), -1.0), 1.0)
        if not len(actions):
            nothing = np.empty(0)
            return Segment(
                state=np.empty((0, STATE_DIM)), success=nothing.astype(bool), distance=nothing,
                reward=nothing if rewards else None,
            )  # fmt: skip
        segment = self.engine.step(actions, rewards=rewards)
        self.num_steps += len(segment)
        self.state, self.distance = segment.state[-1], float(segment.distance[-1])
        return segment

    @property
    def physics_dim(self) -> int:
        """P: numbers in MuJoCo's full integration state."""
        return int(mujoco.mj_stateSize(self.engine.model, PHYSICS))

    def physics(self) -> np.ndarray:
        """Return MuJoCo's full integration state, float64 (P,); with the start, all that a picture needs."""
        return get_physics(self.engine.model, self.engine.data)
