"""Agents: the interface of everything that acts, and the agents that need no training."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from act_kit.arrays import as_array
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState
from act_kit.sim.other_way import OtherWayExpert
from act_kit.sim.render import CameraViews
from act_kit.sim.tasks import ACTION_DIM

_CHUNK_SIZE = 16
"""Number of actions that an agent which ignores the states plans at once."""


@dataclass(frozen=True, kw_only=True)
class ActionChunks:
    """Next N actions of B environments.

    Attributes:
        actions: The actions to execute, before clipping, (B, N, 4).
        labels: The actions to imitate, float32 (B, N, 4) in [-1, 1]; None if they are the executed ones.
        ends: bool (B,), True where the agent ends the episode instead of acting; None for nowhere.
        failures: Error message of each environment where the agent failed, by its index; its episode ends and counts as
            failed (:attr:`~act_kit.rollouts.episode.Episode.crash`).
    """

    actions: np.ndarray
    labels: np.ndarray | None = None
    ends: np.ndarray | None = None
    failures: Mapping[int, str] = field(default_factory=dict)


def as_chunks(planned: np.ndarray | ActionChunks) -> ActionChunks:
    """Return planned actions as chunks, of which an agent may plan only the actions."""
    return planned if isinstance(planned, ActionChunks) else ActionChunks(actions=planned)


class Agent(ABC):
    """Base of agents, which plan actions for many environments, the rows of a vector simulator.

    Attributes:
        views: Cameras whose images the agent needs, or None if it uses only the state.
        source: Source that an episode records, read when the episode begins; for example ``scripted``.
        parent: Run or dataset that the agent is made from, an entry of ``DatasetInfo.parents``; None if there is none.
        provenance: What an evaluation records about the agent, plain values; None for nothing.
        latencies_s: Seconds from each observation to its actions, by task; none if the agent does not measure them.
        num_asked: Largest number of environments that were asked at the same time while they were measured.
    """

    views: CameraViews | None = None
    source: str = ""
    parent: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    latencies_s: Mapping[str, Sequence[float]] = MappingProxyType({})
    num_asked: int = 0

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:  # noqa: B027
        """Begin an episode of ``init_state.task`` in ``row``, and discard the state of the previous one.

        ``attempt`` is the number of the episode in its collection or rollout, from 0. Random numbers may depend on it
        and on the initial state, but not on the row.
        """

    def finish(self, row: int) -> Any:
        """Return what the episode in ``row``, which has ended, keeps of the agent (:attr:`Episode.notes`); None."""
        return None

    @abstractmethod
    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray | ActionChunks:
        """Return the next actions of environments ``rows`` (B,): an array (B, N, 4), or :class:`ActionChunks`.

        Args:
            states: float64 (B, 39).
            rows: int64 (B,).
            images: uint8 (B, C, H, W, 3), or None without views.
        """


class ExpertAgent(Agent):
    """The scripted expert of each initial state's task: Meta-World's own, or the one that passes the wall elsewhere.

    Failures of Meta-World's own indicate problems of the environment or the success rule.
    """

    def __init__(self, *, other_way: bool = False) -> None:
        """With ``other_way``, use :class:`~act_kit.sim.other_way.OtherWayExpert`, which few tasks have."""
        self.source = "other-way" if other_way else "scripted"
        self._make = OtherWayExpert if other_way else ScriptedExpert
        self._experts: dict[str, ScriptedExpert | OtherWayExpert] = {}
        self._row_experts: dict[int, ScriptedExpert | OtherWayExpert] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Choose the expert of the task."""
        if init_state.task not in self._experts:
            self._experts[init_state.task] = self._make(init_state.task)
        self._row_experts[row] = self._experts[init_state.task]

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return one action of the expert per environment."""
        actions = [self._row_experts[int(row)].act(state) for row, state in zip(rows, states, strict=True)]
        return np.array(actions)[:, None]


class ZeroActionAgent(Agent):
    """Agent whose actions are zero; it measures success without any control."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return zeros."""
        return np.zeros((len(states), _CHUNK_SIZE, ACTION_DIM), dtype=np.float32)


class RandomAgent(Agent):
    """Agent with uniform random actions, seeded by the initial state; it measures success by chance."""

    def __init__(self) -> None:
        self._rngs: dict[int, np.random.Generator] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Seed the random numbers of the environment by its initial state."""
        digest = hashlib.sha256(init_state.array.tobytes()).digest()
        self._rngs[row] = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return uniform random actions in [-1, 1]."""
        chunks = [self._rngs[int(row)].uniform(-1, 1, (_CHUNK_SIZE, ACTION_DIM)) for row in rows]
        return np.stack(chunks).astype(np.float32)


class DelayedAgent(Agent):
    """Agent whose answers arrive late: that to the observation of step t is executed from step t + ``delay`` on.

    It is a delay line of actions that begins with ``delay`` zero actions: until the first answer the robot stands
    still, and while it waits for a later one, it executes the rest of the previous actions. The agent is asked as often
    as without a delay, and all of its actions are executed, in their order.
    """

    def __init__(self, agent: Agent, delay: int) -> None:
        """Delay the answers of ``agent`` by ``delay`` steps, at least 1."""
        self._agent = agent
        self._delay = delay
        self._lines: dict[int, np.ndarray] = {}
        self.views = agent.views
        self.source = agent.source
        self.parent = agent.parent
        self.provenance = agent.provenance

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Fill the delay line of the environment with zero actions."""
        self._agent.begin(row, init_state, attempt)
        self._lines[row] = np.zeros((self._delay, ACTION_DIM))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Put the agent's actions into the delay lines, and return as many that leave them."""
        chunks = as_chunks(self._agent.plan(states, rows, images))
        name = type(self._agent).__name__
        answers = as_array(chunks.actions, f"The actions of {name}", (len(rows), "N", ACTION_DIM))
        actions = np.empty_like(answers)
        for i, row in enumerate(rows.tolist()):
            line = np.concatenate([self._lines[row], answers[i]])
            actions[i], self._lines[row] = np.split(line, [len(answers[i])])
        return replace(chunks, actions=actions, labels=None)


def delayed(agent: Agent, delay: int) -> Agent:
    """Return an agent whose answers arrive ``delay`` steps late; with 0, the agent itself."""
    return DelayedAgent(agent, delay) if delay else agent


class NoisyAgent(Agent):
    """Agent with Gaussian noise on its executed actions but not on its labels.

    So the data show how to recover (DART, Laskey et al. 2017).
    """

    def __init__(self, agent: Agent, noise: float, *, seed: int) -> None:
        """Add noise of standard deviation ``noise``, in units of the action, seeded by ``seed`` and the attempt."""
        self.views = agent.views
        self.parent = agent.parent
        self._agent = agent
        self._noise = noise
        self._seed = seed
        self._rngs: dict[int, np.random.Generator] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Seed the noise by the attempt."""
        self._agent.begin(row, init_state, attempt)
        self.source = self._agent.source
        self._rngs[row] = np.random.default_rng([self._seed, attempt])

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Return the actions of the agent with noise, and without it as labels."""
        chunks = as_chunks(self._agent.plan(states, rows, images))
        noise = np.stack([self._rngs[int(row)].standard_normal(chunks.actions.shape[1:]) for row in rows])
        noisy = np.clip(chunks.actions + self._noise * noise, -1.0, 1.0).astype(np.float32)
        labels = chunks.actions if chunks.labels is None else chunks.labels
        return replace(chunks, actions=noisy, labels=labels)
