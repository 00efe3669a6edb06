"""Records of demonstrations: episodes as arrays, and one record for each attempt to demonstrate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from act_kit.sim.initial_states import InitialState

STEP_FIELDS = ("state", "action", "executed_action", "reward", "success", "distance", "physics")
"""Fields recorded at every step, in the order of storage and fingerprint; ``reward`` only if requested."""

_DTYPES = {"action": np.float32, "executed_action": np.float32, "success": np.bool_}

POLICY = "policy:"
"""Prefix of the source of an episode in which a policy acted; the name of the policy's run follows."""


def is_corrected(source: str) -> bool:
    """Return True if a policy acted and the scripted expert labeled (DAgger); such episodes often fail."""
    return source.startswith(POLICY)


def dtype_of(name: str) -> type:
    """Return the dtype in which one of ``STEP_FIELDS`` is stored."""
    return _DTYPES.get(name, np.float64)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """T steps of a demonstration from any source, with only the fields that are known.

    Attributes:
        steps: Some of ``STEP_FIELDS``, at least ``state`` and ``action``: (T, …), in the dtypes of :class:`Episode`, of
            any width.
        source: Demonstrator.
        init_state: Initial state, or None if it was not recorded.
        images: By camera, uint8 (T, H, W, 3).
        attempt: Number of the attempt in its collection, from 0.
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
        """First successful step, or -1; also -1 if success was not recorded."""
        success = self.steps.get("success")
        return int(np.argmax(success)) if success is not None and success.any() else -1


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T steps of a demonstration in Meta-World.

    Row t of ``state`` and ``physics`` is recorded before action t, row t of the other fields after it.

    Attributes:
        init_state: Initial state.
        attempt: Number of the attempt in its collection, from 0.
        source: Demonstrator, for example ``scripted``.
        state: float64 (T, 39), Meta-World's observation with a visible goal.
        action: float32 (T, 4) in [-1, 1], the demonstrator's action: the label for imitation.
        executed_action: float32 (T, 4) in [-1, 1], the executed action (``action`` plus noise, if any).
        reward: float64 (T,), Meta-World's dense reward, or None if not requested: imitation does not need it, and it
            takes longer than the simulation.
        success: bool (T,).
        distance: float64 (T,), meters (radians for lever-pull).
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
        """Fields recorded at every step, by name."""
        return {name: values for name in STEP_FIELDS if (values := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        return (
            f"Episode({self.init_state.task}, attempt={self.attempt}, steps={len(self)}, "
            f"success_step={self.success_step})"
        )

    @property
    def success_step(self) -> int:
        """First successful step, or -1."""
        return int(np.argmax(self.success)) if self.success.any() else -1


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Record of one attempt to demonstrate, kept or not; discarded attempts can leave gaps in the coverage.

    Attributes:
        init_state: Initial state.
        num_steps: Number of steps.
        kept: True if it became an episode.
    """

    init_state: InitialState
    num_steps: int
    kept: bool
