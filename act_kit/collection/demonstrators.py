"""Who demonstrates: anything that turns the state it sees into the action to imitate, and one to carry out.

To add one: write a class with ``source``, ``begin`` and ``act``, and name it in ``DEMONSTRATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from act_kit.collection.replay import ReplayDemonstrator
from act_kit.config import CollectConfig
from act_kit.errors import ConfigError, did_you_mean
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState


class Demonstrator(Protocol):
    """Acts on one simulator, one step at a time. What it does in an attempt depends on the attempt's number alone.

    Attributes:
        source: What episodes name as their source.
        parent: What it was made of, as :class:`~act_kit.datasets.store.DatasetInfo` names it; None if of nothing.
    """

    source: str
    parent: dict[str, Any] | None

    def begin(self, init_state: InitialState, attempt: int) -> None:
        """Begin attempt number ``attempt``, from ``init_state``: forget the one before."""
        ...

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return, for a state, float64 (39,), the action to imitate and the one to carry out, float32 (4,) in [-1, 1].

        None: there is nothing more to demonstrate.
        """
        ...


class ExpertDemonstrator:
    """Meta-World's scripted expert of a task."""

    source = "scripted"
    parent: dict[str, Any] | None = None

    def __init__(self, task: str) -> None:
        self._task = task

    @cached_property
    def _expert(self) -> ScriptedExpert:
        return ScriptedExpert(self._task)  # 0.4 s, which who only asks for the source need not wait for

    def begin(self, init_state: InitialState, attempt: int) -> None:
        """Nothing to forget."""

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action = self._expert.act(state)
        return action, action


def _corrected(config: CollectConfig) -> Demonstrator:
    from act_kit.collection.dagger import DaggerDemonstrator  # PyTorch, which takes a second

    return DaggerDemonstrator(config)


DEMONSTRATORS: dict[str, Callable[[CollectConfig], Demonstrator]] = {
    "scripted": lambda config: ExpertDemonstrator(config.task),
    "policy": _corrected,
    "replay": ReplayDemonstrator,
}
"""Demonstrators by the name that ``--demonstrator`` takes."""


def make_demonstrator(config: CollectConfig) -> Demonstrator:
    """Make the demonstrator that ``config`` asks for.

    Raises:
        ConfigError: There is none of that name, or it cannot demonstrate what it was given.
        CheckpointError, DatasetError: What it needs is missing, damaged or of another task.
    """
    name = config.demonstrator
    if name not in DEMONSTRATORS:
        known = (*DEMONSTRATORS, "teleop")
        raise ConfigError(f"'{name}' is not a demonstrator; there are {', '.join(known)}.{did_you_mean(name, known)}")
    return DEMONSTRATORS[name](config)
