"""Records of episodes from any source: demonstrations, evaluations, imported data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from act_kit.sim.initial_states import InitialState

STEP_FIELDS = ("state", "action", "executed_action", "reward", "success", "distance", "physics")
"""Fields recorded at every step, in the order of storage and fingerprint."""

PATH_DIM = 7
"""Size of the part of a state that describes the path of an episode: hand, gripper, first object."""

Recorded: TypeAlias = np.ndarray | Any
"""Array, or None if it is not recorded. The type is not Optional: code for complete episodes need not test for None."""

_DTYPES = {"action": np.float32, "executed_action": np.float32, "success": np.bool_}

POLICY = "policy:"
"""Prefix of the source of an episode in which a policy acted; the name of the policy's run follows."""


def is_dagger(source: str) -> bool:
    """Return True if a policy acted and the scripted expert labeled (DAgger); such episodes often fail."""
    return source.startswith(POLICY)


def dtype_of(name: str) -> type:
    """Return the dtype in which one of ``STEP_FIELDS`` is stored."""
    return _DTYPES.get(name, np.float64)


@dataclass(frozen=True, kw_only=True, repr=False)
class Episode:
    """T steps of an agent from an initial state. A field that is unknown or was not requested is None.

    Row t of ``state`` and ``physics`` is recorded before action t, row t of the other arrays after it. Episodes in
    Meta-World have the shapes below; the widths of imported data may differ.

    Attributes:
        state: float64 (T, 39), Meta-World's observation with a visible goal.
        action: float32 (T, 4) in [-1, 1], the label for imitation.
        executed_action: float32 (T, 4) in [-1, 1]; differs from ``action`` with noise and with DAgger.
        reward: float64 (T,), Meta-World's dense reward, 0 to 10; computing it takes longer than the simulation.
        success: bool (T,).
        distance: float64 (T,), distance to the goal, meters (radians for lever-pull).
        physics: float64 (T, P), MuJoCo's integration state.
        images: By camera, uint8 (T, H, W, 3).
        init_state: Initial state.
        source: Who acted, for example ``scripted``.
        attempt: Number of the episode in its collection or rollout, from 0.
        settle_steps: Zero actions that were executed before the first step, which no field contains.
        initial_distance: Distance before the first action.
        last_state: float64 (39,), the state after the last action.
        query_steps: int64 (Q,), the steps before which the agent planned.
        clip_fraction: Fraction of the planned numbers that were outside [-1, 1].
        crash: Error message of the simulation or of the agent, or None. A crashed episode counts as failed.
        notes: What the agent keeps of the episode, see :meth:`~act_kit.rollouts.agents.Agent.finish`; it is not stored.
    """

    state: Recorded = None
    action: Recorded = None
    executed_action: Recorded = None
    reward: Recorded = None
    success: Recorded = None
    distance: Recorded = None
    physics: Recorded = None
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    init_state: InitialState | Any = None
    source: str = ""
    attempt: int = 0
    settle_steps: int = 0
    initial_distance: float | Any = None
    last_state: Recorded = None
    query_steps: Recorded = None
    clip_fraction: float = 0.0
    crash: str | None = None
    notes: Any = None

    def __len__(self) -> int:
        return len(self.action)

    def __repr__(self) -> str:
        task = self.init_state.task if self.init_state else "unknown initial state"
        shapes = "".join(f", {name}={values.dtype}{values.shape}" for name, values in self.steps.items())
        return f"Episode({task}, {self.source!r}, attempt={self.attempt}, success_step={self.success_step}{shapes})"

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """Recorded ``STEP_FIELDS`` by name."""
        return {name: values for name in STEP_FIELDS if (values := getattr(self, name)) is not None}

    @property
    def is_complete(self) -> bool:
        """True if the initial state and all ``STEP_FIELDS`` but the reward are recorded, as in collected episodes."""
        return self.init_state is not None and self.steps.keys() >= set(STEP_FIELDS) - {"reward"}

    @property
    def success_once(self) -> bool:
        """True if any step succeeded: the benchmark's definition."""
        return self.crash is None and self.success is not None and bool(self.success.any())

    @property
    def success_at_end(self) -> bool:
        """True if the last step succeeded."""
        return self.success_once and bool(self.success[-1])

    @property
    def success_step(self) -> int | None:
        """First successful step, or None."""
        return int(np.argmax(self.success)) if self.success_once else None

    @property
    def distances(self) -> np.ndarray:
        """Distance before the first action and after each action, float64 (T + 1,)."""
        return np.append(self.initial_distance, self.distance)

    @property
    def states(self) -> np.ndarray:
        """State before the first action and after each action, float64 (T + 1, 39)."""
        return np.concatenate([self.state, self.last_state[None]])

    @property
    def path(self) -> np.ndarray:
        """Path before the first action and after each action: hand (3), gripper from 0 to 1, object (3); meters.

        float32 (T + 1, 7). In some tasks, the first row contains the object's position before the reset.
        """
        path: np.ndarray = self.states[:, :PATH_DIM].astype(np.float32)
        return path

    @property
    def query_states(self) -> np.ndarray:
        """States in which the agent planned, float64 (Q, 39)."""
        states: np.ndarray = self.state[self.query_steps]
        return states


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """Record of one attempt to demonstrate, kept or not; discarded attempts can leave gaps in the coverage.

    Attributes:
        init_state: Initial state.
        num_steps: Number of steps.
        kept: True if it became an episode.
    """

    init_state: InitialState
    num_steps: int
    kept: bool
