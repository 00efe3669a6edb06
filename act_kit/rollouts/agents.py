"""Who acts in a rollout: a policy, or one of the controls that say what its number is worth."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from act_kit.policies.policy import Policy
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews


class Agent(Protocol):
    """Plans actions for many environments, the rows of a vector simulator.

    Attributes:
        views: The cameras it looks through, or None if the state is all it sees.
    """

    views: CameraViews | None

    def begin(self, row: int, init_state: InitialState) -> None:
        """Begin an episode in ``row``, of ``init_state.task``: forget the one before."""
        ...

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next N actions (B, N, 4) of environments ``rows`` (B,), before clipping.

        It sees their states (B, 39) and, through its views, images (B, C, H, W, 3) uint8.
        """
        ...


class PolicyAgent:
    """A trained policy. It shares the weights, and not what it plans: that of two evaluations at once would mix."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.with_chunking()
        self.views = policy.views
        self._tasks: dict[int, int] = {}

    def begin(self, row: int, init_state: InitialState) -> None:
        self.policy.executor.reset(np.array([row]))
        self._tasks[row] = self.policy.tasks.index(init_state.task)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        tasks = np.array([self._tasks[int(row)] for row in rows])
        return self.policy.executor.plan(self.policy.predict(states, images, tasks), rows)


class ExpertAgent:
    """The scripted expert of each start's task: where it fails, the environment or the success rule is to blame."""

    views: CameraViews | None = None

    def __init__(self) -> None:
        self._experts: dict[str, ScriptedExpert] = {}
        self._of_row: dict[int, ScriptedExpert] = {}

    def begin(self, row: int, init_state: InitialState) -> None:
        if init_state.task not in self._experts:
            self._experts[init_state.task] = ScriptedExpert(init_state.task)
        self._of_row[row] = self._experts[init_state.task]

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        actions = [self._of_row[int(row)].act(state) for row, state in zip(rows, states, strict=True)]
        return np.stack(actions)[:, None]


class ZeroActionAgent:
    """Zero actions: what succeeds by itself."""

    views: CameraViews | None = None

    def begin(self, row: int, init_state: InitialState) -> None:
        """Nothing to forget."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.zeros((len(states), 16, 4), dtype=np.float32)


class RandomAgent:
    """Uniform random actions, decided by the start: what luck achieves."""

    views: CameraViews | None = None

    def __init__(self) -> None:
        self._rngs: dict[int, np.random.Generator] = {}

    def begin(self, row: int, init_state: InitialState) -> None:
        digest = hashlib.sha256(init_state.array.tobytes()).digest()
        self._rngs[row] = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.stack([self._rngs[int(row)].uniform(-1, 1, (16, 4)) for row in rows]).astype(np.float32)
