"""Foreign policies for the tests of the doctor: healthy ones, and one with each fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from act_kit.eval.evaluate import FunctionAgent
from act_kit.rollouts.agents import ActionChunks, Agent, ExpertAgent, NoisyAgent, RandomAgent, ZeroActionAgent
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator

Plan = np.ndarray


class Wrapped(Agent):
    """A policy whose actions another class changes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.views = agent.views

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        self.agent.begin(row, init_state, attempt)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        planned = self.agent.plan(states, rows, images)
        return planned.actions if isinstance(planned, ActionChunks) else planned


class Changed(Wrapped):
    """A policy whose actions (B, N, 4) are changed."""

    def __init__(self, agent: Agent, change: Callable[[Plan], Plan]) -> None:
        super().__init__(agent)
        self._change = change

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        return self._change(super().plan(states, rows, images))


class Smoothed(Wrapped):
    """A policy with state: its actions are averaged with the last ones, by row or by position in the batch."""

    def __init__(self, agent: Agent, *, resets: bool = True, by_position: bool = False) -> None:
        super().__init__(agent)
        self._resets, self._by_position = resets, by_position
        self._last: dict[int, np.ndarray] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        super().begin(row, init_state, attempt)
        if self._resets:
            self._last.pop(row, None)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        planned = super().plan(states, rows, images)
        for i, row in enumerate(rows.tolist()):
            key = i if self._by_position else row
            self._last[key] = planned[i] = 0.7 * planned[i] + 0.3 * self._last.get(key, planned[i])
        return planned


class Late(Wrapped):
    """A policy that answers the observation before the last one."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._last: dict[int, np.ndarray] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        super().begin(row, init_state, attempt)
        self._last.pop(row, None)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        planned = super().plan(states, rows, images)
        answers = np.stack([self._last.get(row, planned[i]) for i, row in enumerate(rows.tolist())])
        self._last.update(zip(rows.tolist(), planned.copy(), strict=True))
        return answers


class Buffered(Late):
    """A policy that answers the observation before the last one, and the first one with zeros."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        for row in rows.tolist():
            self._last.setdefault(row, np.zeros((1, 4)))
        return super().plan(states, rows, images)


class Frozen(Wrapped):
    """A policy that sees the first observation of an episode until its end."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._first: dict[int, np.ndarray] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        super().begin(row, init_state, attempt)
        self._first.pop(row, None)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        seen = [self._first.setdefault(row, states[i].copy()) for i, row in enumerate(rows.tolist())]
        return super().plan(np.stack(seen), rows, images)


class Diverging(Wrapped):
    """A policy that sometimes sends NaN."""

    def __init__(self, agent: Agent, rate: float) -> None:
        super().__init__(agent)
        self._rate, self._rng = rate, np.random.default_rng(5)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        planned = super().plan(states, rows, images)
        return np.where(self._rng.random((len(planned), 1, 1)) < self._rate, np.nan, planned)


class Raising(Wrapped):
    """A policy that raises an error from some question on."""

    def __init__(self, agent: Agent, num_answers: int) -> None:
        super().__init__(agent)
        self._num_left = num_answers

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        self._num_left -= 1
        if self._num_left < 0:
            raise RuntimeError("out of memory")
        return super().plan(states, rows, images)


class Blind(Wrapped):
    """A policy that sees only a part of the state; the rest has the values of the first state that it ever saw."""

    def __init__(self, agent: Agent, hidden: slice) -> None:
        super().__init__(agent)
        self._hidden = hidden
        self._first: np.ndarray | None = None

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        self._first = states[0].copy() if self._first is None else self._first
        states = states.copy()
        states[:, self._hidden] = self._first[self._hidden]
        return super().plan(states, rows, images)


class Sampling(Wrapped):
    """A policy that samples."""

    def __init__(self, agent: Agent, noise: float) -> None:
        super().__init__(agent)
        self._noise, self._rng = noise, np.random.default_rng(0)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        planned = super().plan(states, rows, images)
        return planned + self._noise * self._rng.standard_normal(planned.shape)


@cache
def expert_path(init_state: InitialState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the states (T, 39), the actions (T, 4) and the physics (T, P) of the expert from an initial state."""
    simulator, expert = Simulator(init_state.task), ScriptedExpert(init_state.task)
    states, actions, physics = [simulator.reset(init_state)], [], []
    for _ in range(300):
        physics.append(simulator.physics())
        actions.append(expert.act(states[-1]))
        batch = simulator.step_chunk(actions[-1][None])
        states.append(batch.state[-1])
        if batch.success.any() and len(actions) > 1:
            break
    return np.array(states[:-1]), np.array(actions), np.array(physics)


class ChunkedExpert(Agent):
    """A policy that plans the expert's next actions, from the state on its path that is nearest to the current one."""

    def __init__(self, size: int, first: int = 0) -> None:
        """Plan ``size`` actions; send those from ``first`` on."""
        self._size, self._first = size, first
        self._paths: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        self._paths[row] = expert_path(init_state)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        chunks: list[np.ndarray] = []
        for state, row in zip(states, rows.tolist(), strict=True):
            path, actions, _ = self._paths[row]
            nearest = int(np.abs(path - state).sum(axis=1).argmin())
            steps = np.clip(np.arange(nearest + self._first, nearest + self._size), 0, len(path) - 1)
            chunks.append(actions[steps])
        return np.stack(chunks)


class DelayedChunks(ChunkedExpert):
    """A policy whose chunks begin two steps before the observation, as those of one that was trained on histories."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> Plan:
        chunks: list[np.ndarray] = []
        for state, row in zip(states, rows.tolist(), strict=True):
            path, actions, _ = self._paths[row]
            nearest = int(np.abs(path - state).sum(axis=1).argmin())
            chunks.append(actions[np.clip(np.arange(nearest - 2, nearest + self._size), 0, len(path) - 1)])
        return np.stack(chunks)


def proportional(states: np.ndarray) -> np.ndarray:
    """A proportional controller for reach-v3."""
    return np.column_stack([10 * (states[:, -3:] - states[:, :3]), -np.ones(len(states))])


def slow(states: np.ndarray) -> np.ndarray:
    """A controller for reach-v3 with a third of that gain."""
    return proportional(states) * [1 / 3, 1 / 3, 1 / 3, 1]


def scaled(factor: float) -> Callable[[Plan], Plan]:
    return lambda actions: actions * [factor, factor, factor, 1]


def to_meters(actions: Plan) -> Plan:
    return actions * [0.01, 0.01, 0.01, 1]


def mirrored_x(actions: Plan) -> Plan:
    return actions * [-1, 1, 1, 1]


def exchanged(actions: Plan) -> Plan:
    return actions[..., [1, 0, 2, 3]]


def gripper_first(actions: Plan) -> Plan:
    return actions[..., [3, 0, 1, 2]]


def turned_gripper(actions: Plan) -> Plan:
    return actions * [1, 1, 1, -1]


def gripper_from_0(actions: Plan) -> Plan:
    return np.concatenate([actions[..., :3], (1 - actions[..., 3:]) / 2], axis=-1)


def centered(actions: Plan) -> Plan:
    """Subtract the mean of the batch, as a normalization layer does that was left in its training mode."""
    return actions - 0.5 * actions.mean(axis=0)


HEALTHY: dict[str, tuple[Callable[[], Agent], tuple[str, ...]]] = {
    "expert": (ExpertAgent, ()),
    "noisy expert": (lambda: NoisyAgent(ExpertAgent(), 0.1, seed=0), ()),
    "smoothed expert": (lambda: Smoothed(ExpertAgent()), ()),
    "chunked expert": (lambda: ChunkedExpert(8), ()),
    "sampling expert": (lambda: Sampling(ExpertAgent(), 0.05), ()),
    "proportional controller": (lambda: FunctionAgent(proportional), ("reach-v3",)),
    "slow controller": (lambda: FunctionAgent(slow), ("reach-v3",)),
}
"""Healthy policies, and the tasks that they solve; () for all."""

BAD: dict[str, Callable[[], Agent]] = {
    "random": RandomAgent,
    "zero actions": ZeroActionAgent,
    "noise around the expert": lambda: Sampling(ExpertAgent(), 2.0),
    "much noise": lambda: NoisyAgent(ExpertAgent(), 0.5, seed=0),
    "constant": lambda: FunctionAgent(lambda states: np.tile([0.3, -1.0, 0.5, 1.0], (len(states), 1))),
    "untrained": lambda: FunctionAgent(untrained),
}
"""Policies that are bad and nothing else: no fault of the actions or the images is to be found."""

MAY_SUCCEED = ("noise around the expert", "much noise")
"""Those of them that solve some tasks."""


def untrained(states: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(3).standard_normal((39, 4))
    return np.tanh(states @ weights)


FAULTS: dict[str, tuple[Callable[[], Agent], str]] = {
    "gripper turned": (lambda: Changed(ExpertAgent(), turned_gripper), "gripper turned"),
    "gripper from 1 to 0": (lambda: Changed(ExpertAgent(), gripper_from_0), "gripper turned"),
    "actions x 0.1": (lambda: Changed(ExpertAgent(), scaled(0.1)), "action scale off"),
    "actions x 10": (lambda: Changed(ExpertAgent(), scaled(10)), "action scale off"),
    "actions in meters": (lambda: Changed(ExpertAgent(), to_meters), "action scale off"),
    "x mirrored": (lambda: Changed(ExpertAgent(), mirrored_x), "action axes turned or exchanged"),
    "x and y exchanged": (lambda: Changed(ExpertAgent(), exchanged), "action axes turned or exchanged"),
    "state hidden": (lambda: Blind(ExpertAgent(), slice(0, 39)), "dead input"),
    "object hidden": (lambda: Blind(ExpertAgent(), slice(4, 18)), "dead input"),
    "rows reversed": (
        lambda: Changed(ExpertAgent(), lambda actions: actions[::-1]),
        "rows mixed up between environments",
    ),
    "batch mean subtracted": (lambda: Changed(ExpertAgent(), centered), "rows mixed up between environments"),
    "state by position": (
        lambda: Smoothed(ExpertAgent(), by_position=True),
        "rows mixed up between environments",
    ),
    "chunks reversed": (
        lambda: Changed(ChunkedExpert(8), lambda actions: actions[:, ::-1]),
        "chunks executed from the wrong end",
    ),
    "last half of the chunk": (lambda: ChunkedExpert(16, first=8), "chunks executed from the wrong end"),
    "chunk of the past": (lambda: DelayedChunks(8), "chunks executed from the wrong end"),
    "late by an answer": (lambda: Late(ExpertAgent()), "late answers"),
    "state kept": (lambda: Smoothed(ExpertAgent(), resets=False), "state shared between episodes"),
    "sampling": (lambda: Sampling(ExpertAgent(), 0.05), "not deterministic"),
    "gripper first": (lambda: Changed(ExpertAgent(), gripper_first), "action axes turned or exchanged"),
    "first observation": (lambda: Frozen(ExpertAgent()), "observation frozen"),
    "zeros first": (lambda: Buffered(ExpertAgent()), "late answers"),
    "sometimes NaN": (lambda: Diverging(ExpertAgent(), 5e-4), "the policy crashes"),
}
"""Policies with a fault, and the name under which it is found."""

PAIRS: dict[str, tuple[Callable[[], Agent], set[str]]] = {
    "exchanged, in meters": (
        lambda: Changed(Changed(ExpertAgent(), exchanged), to_meters),
        {"action axes turned or exchanged", "action scale off"},
    ),
    "mirrored, x 10": (
        lambda: Changed(Changed(ExpertAgent(), mirrored_x), scaled(10)),
        {"action axes turned or exchanged", "action scale off"},
    ),
    "gripper turned, in meters": (
        lambda: Changed(Changed(ExpertAgent(), turned_gripper), to_meters),
        {"gripper turned", "action scale off"},
    ),
    "gripper turned, exchanged": (
        lambda: Changed(Changed(ExpertAgent(), turned_gripper), exchanged),
        {"gripper turned", "action axes turned or exchanged"},
    ),
    "chunks reversed, in meters": (
        lambda: Changed(Changed(ChunkedExpert(8), lambda actions: actions[:, ::-1]), to_meters),
        {"chunks executed from the wrong end", "action scale off"},
    ),
    "chunks reversed, exchanged": (
        lambda: Changed(Changed(ChunkedExpert(8), lambda actions: actions[:, ::-1]), exchanged),
        {"chunks executed from the wrong end", "action axes turned or exchanged"},
    ),
    "zeros first, gripper turned": (
        lambda: Changed(Buffered(ExpertAgent()), turned_gripper),
        {"late answers", "gripper turned"},
    ),
    "zeros first, exchanged": (
        lambda: Changed(Buffered(ExpertAgent()), exchanged),
        {"late answers", "action axes turned or exchanged"},
    ),
    "frozen, exchanged": (
        lambda: Changed(Frozen(ExpertAgent()), exchanged),
        {"observation frozen", "action axes turned or exchanged"},
    ),
    "state kept, in meters": (
        lambda: Changed(Smoothed(ExpertAgent(), resets=False), to_meters),
        {"state shared between episodes", "action scale off"},
    ),
    "sometimes NaN, exchanged": (
        lambda: Changed(Diverging(ExpertAgent(), 5e-4), exchanged),
        {"the policy crashes", "action axes turned or exchanged"},
    ),
}
"""Policies with two faults, and the names of both: one of them is found first, and nothing else is confirmed."""

NEEDS_GRIPPER = ("gripper turned", "gripper from 1 to 0")
NEEDS_OBJECT = ("object hidden",)
