"""Demonstrators: map a state to the action to imitate (the label) and the action to execute.

To add one, write a class with ``source``, ``begin`` and ``act``, and name it in ``DEMONSTRATORS``.
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
    """Agent that demonstrates in one simulator; its actions in an attempt depend only on the attempt's number.

    Attributes:
        source: Source that the episodes record.
        parent: Run or dataset that it is made from, an entry of ``DatasetInfo.parents``; None if there is none.
    """

    source: str
    parent: dict[str, Any] | None

    def begin(self, init_state: InitialState, attempt: int) -> None:
        """Reset for attempt number ``attempt``, from ``init_state``."""
        ...

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the action to imitate and the action to execute, float32 (4,) in [-1, 1], in a state, float64 (39,).

        None ends the demonstration.
        """
        ...


class ExpertDemonstrator:
    """Demonstrator that is Meta-World's scripted expert of a task."""

    source = "scripted"
    parent: dict[str, Any] | None = None

    def __init__(self, task: str) -> None:
        self._task = task

    @cached_property
    def _expert(self) -> ScriptedExpert:
        return ScriptedExpert(self._task)  # takes 0.4 s, so not before the first action

    def begin(self, init_state: InitialState, attempt: int) -> None:
        """Do nothing: the expert has no state."""

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action = self._expert.act(state)
        return action, action


def _make_dagger(config: CollectConfig) -> Demonstrator:
    from act_kit.collection.dagger import DaggerDemonstrator  # imports PyTorch, which takes a second

    return DaggerDemonstrator(config)


DEMONSTRATORS: dict[str, Callable[[CollectConfig], Demonstrator]] = {
    "scripted": lambda config: ExpertDemonstrator(config.task),
    "policy": _make_dagger,
    "replay": ReplayDemonstrator,
}
"""Factories of the demonstrators, by the value of ``--demonstrator``."""


def make_demonstrator(config: CollectConfig) -> Demonstrator:
    """Make the demonstrator that ``config`` names.

    Raises:
        ConfigError: There is no such demonstrator, or the policy takes images.
        CheckpointError, DatasetError: Its run or dataset is missing, damaged or of another task.
    """
    name = config.demonstrator
    if name not in DEMONSTRATORS:
        choices = (*DEMONSTRATORS, "teleop")
        raise ConfigError(
            f"'{name}' is not a demonstrator: choose from: {', '.join(choices)}.{did_you_mean(name, choices)}"
        )
    return DEMONSTRATORS[name](config)
