"""Who demonstrates: anything that turns the state it sees into the action to imitate.

To add one: write a class with ``source`` and ``act``, and name it in ``DEMONSTRATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from act_kit.errors import ConfigError, did_you_mean
from act_kit.sim.expert import ScriptedExpert


class Demonstrator(Protocol):
    """Acts on one simulator, one step at a time.

    Attributes:
        source: What episodes name as their source.
    """

    source: str

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, float32 (4,) in [-1, 1], for a state, float64 (39,)."""
        ...


DEMONSTRATORS: dict[str, Callable[[str], Demonstrator]] = {"scripted": ScriptedExpert}
"""Demonstrators by the name that ``--demonstrator`` takes; each is made for a task."""


def check_demonstrator(name: str) -> None:
    """Raise :class:`ConfigError` unless there is a demonstrator of that name."""
    known = (*DEMONSTRATORS, "teleop")
    if name not in known:
        raise ConfigError(f"'{name}' is not a demonstrator; there are {', '.join(known)}.{did_you_mean(name, known)}")
