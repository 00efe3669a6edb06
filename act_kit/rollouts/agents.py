"""Agents of a rollout: a trained policy and the baselines that its success rate is compared with."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews


class Agent(Protocol):
    """Interface of agents, which plan actions for many environments, the rows of a vector simulator.

    Attributes:
        views: Cameras whose images the agent needs, or None if it uses only the state.
    """

    views: CameraViews | None

    def begin(self, row: int, init_state: InitialState) -> None:
        """Begin an episode of ``init_state.task`` in ``row``, and discard the state of the previous episode."""
        ...

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next N actions (B, N, 4) of environments ``rows`` (B,), before clipping.

        Args:
            states: float64 (B, 39).
            rows: int64 (B,).
            images: uint8 (B, C, H, W, 3), or None without views.
        """
        ...


class ExpertAgent:
    """Agent that runs the scripted expert of each initial state's task.

    Its failures indicate problems of the environment or the success rule.
    """

    views: CameraViews | None = None

    def __init__(self) -> None:
        self._experts: dict[str, ScriptedExpert] = {}
        self._row_experts: dict[int, ScriptedExpert] = {}

    def begin(self, row: int, init_state: InitialState) -> None:
        if init_state.task not in self._experts:
            self._experts[init_state.task] = ScriptedExpert(init_state.task)
        self._row_experts[row] = self._experts[init_state.task]

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        actions = [self._row_experts[int(row)].act(state) for row, state in zip(rows, states, strict=True)]
        return np.stack(actions)[:, None]


class ZeroActionAgent:
    """Agent whose actions are zero; it measures success without any control."""

    views: CameraViews | None = None

    def begin(self, row: int, init_state: InitialState) -> None:
        """Do nothing: the agent is stateless."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.zeros((len(states), 16, 4), dtype=np.float32)


class RandomAgent:
    """Agent with uniform random actions, seeded by the initial state; it measures success by chance."""

    views: CameraViews | None = None

    def __init__(self) -> None:
        self._rngs: dict[int, np.random.Generator] = {}

    def begin(self, row: int, init_state: InitialState) -> None:
        digest = hashlib.sha256(init_state.array.tobytes()).digest()
        self._rngs[row] = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        return np.stack([self._rngs[int(row)].uniform(-1, 1, (16, 4)) for row in rows]).astype(np.float32)
