"""Who acts in a rollout: a policy, or one of the controls that say what its number is worth."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from act_kit.policy.policy import Policy
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.starts import Start
from act_kit.sim.render import Views


class Actor(Protocol):
    """Plans actions for many environments, the rows of a vector simulator.

    Attributes:
        views: The cameras it looks through, or None if the state is all it sees.
    """

    views: Views | None

    def begin(self, row: int, start: Start) -> None:
        """Begin an episode in ``row``: forget the one before."""
        ...

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next N actions (B, N, 4) of environments ``rows`` (B,), before clipping.

        It sees their states (B, 39) and, through its views, images (B, C, H, W, 3) uint8.
        """
        ...


class PolicyActor:
    """A trained policy."""

    views: Views | None = None

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        policy.reset()

    def begin(self, row: int, start: Start) -> None:
        self.policy.executor.reset(np.array([row]))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return self.policy.executor.plan(self.policy.predict(states), rows)


class ExpertActor:
    """The scripted expert: where it fails, the environment or the success rule is to blame."""

    views: Views | None = None

    def __init__(self, task: str) -> None:
        self.expert = ScriptedExpert(task)

    def begin(self, row: int, start: Start) -> None:
        """Nothing to forget: the expert acts on the state alone."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.stack([self.expert.act(state) for state in states])[:, None]


class NothingActor:
    """Zero actions: what succeeds by itself."""

    views: Views | None = None

    def begin(self, row: int, start: Start) -> None:
        """Nothing to forget."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.zeros((len(states), 16, 4), dtype=np.float32)


class RandomActor:
    """Uniform random actions, decided by the start: what luck achieves."""

    views: Views | None = None

    def __init__(self) -> None:
        self._rngs: dict[int, np.random.Generator] = {}

    def begin(self, row: int, start: Start) -> None:
        digest = hashlib.sha256(start.array.tobytes()).digest()
        self._rngs[row] = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.stack([self._rngs[int(row)].uniform(-1, 1, (16, 4)) for row in rows]).astype(np.float32)
