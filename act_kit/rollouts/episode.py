"""One demonstration as arrays, and one line about every attempt to make one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from act_kit.sim.initial_states import InitialState

STEP_FIELDS = ("state", "action", "executed_action", "reward", "success", "distance", "physics")
"""What is recorded at every step, in the order it is stored and fingerprinted; ``reward`` only on request."""

_DTYPES = {"action": np.float32, "executed_action": np.float32, "success": np.bool_}

POLICY = "policy:"
"""What the source of an episode begins with in which a policy acted, of which the run's name follows."""


def is_corrected(source: str) -> bool:
    """Tell whether a policy acted and the scripted expert labelled (DAgger): such an episode may well fail."""
    return source.startswith(POLICY)


def dtype_of(name: str) -> type:
    """Return the type that one of ``STEP_FIELDS`` is stored as."""
    return _DTYPES.get(name, np.float64)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """T steps of a demonstration by anybody, of anything: what is known of it, and nothing else.

    Attributes:
        steps: Some of ``STEP_FIELDS``, ``state`` and ``action`` at least: (T, …), in the types of :class:`Episode`, but
            of any width.
        source: Who demonstrated.
        start: The initial state, or None where nobody recorded it.
        images: By camera, uint8 (T, H, W, 3).
        attempt: Which attempt of its collection this was.
    """

    steps: Mapping[str, np.ndarray]
    source: str
    init_state: InitialState | None
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    attempt: int = 0

    def __len__(self) -> int:
        return len(self.steps["action"])

    @property
    def success_step(self) -> int:
        """The first step that succeeded, or -1; -1 too where success was not recorded."""
        success = self.steps.get("success")
        return int(np.argmax(success)) if success is not None and success.any() else -1


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T steps of demonstration in Meta-World, with all that was to be seen.

    Row t of ``state`` and ``physics`` is seen before action t, of the others after it.

    Attributes:
        start: The initial state.
        attempt: Which attempt of the collection this was, from 0.
        source: Who demonstrated, such as ``scripted``.
        state: float64 (T, 39), Meta-World's observation, goal visible.
        action: float32 (T, 4) in [-1, 1], the demonstrator's action: the label to imitate.
        executed_action: float32 (T, 4) in [-1, 1], what was carried out (``action`` plus noise, if any).
        reward: float64 (T,), Meta-World's dense reward, or None: imitation does not need it, and it takes longer than
            the simulation.
        success: bool (T,).
        distance: float64 (T,), metres (radians for lever-pull).
        physics: float64 (T, P), MuJoCo's integration state.
    """

    init_state: InitialState
    attempt: int
    source: str
    state: np.ndarray
    action: np.ndarray
    executed_action: np.ndarray
    reward: np.ndarray | None
    success: np.ndarray
    distance: np.ndarray
    physics: np.ndarray

    def __len__(self) -> int:
        return len(self.action)

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """What was recorded at every step, by its name."""
        return {name: values for name in STEP_FIELDS if (values := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        return f"Episode({self.init_state.task}, attempt={self.attempt}, steps={len(self)}, success_step={self.success_step})"

    @property
    def success_step(self) -> int:
        """The first step that succeeded, or -1."""
        return int(np.argmax(self.success)) if self.success.any() else -1


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a demonstration, kept or not: failures leave holes in the coverage that must be seen.

    Attributes:
        start: The initial state.
        num_steps: How long it ran.
        kept: Whether it became an episode.
    """

    init_state: InitialState
    num_steps: int
    kept: bool
