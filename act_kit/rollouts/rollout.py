"""Rolling out: whoever acts, from given starts, in many environments at once.

An outcome depends on its start and on who acted, never on the number of processes or on what ran beside it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError
from act_kit.parallel import Executor
from act_kit.rollouts.agents import Agent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews
from act_kit.sim.tasks import ACTION_DIM, HORIZON, STATE_DIM
from act_kit.sim.vector import SimulationFailure, StepResult, VectorSimulator

MAX_ENVS = 64
"""Environments of one process at the same time. Beyond, nothing gets faster; each holds about 1 MB."""

SHARE = 16
"""Episodes of a job on a cluster: what is done again if its machine dies."""

PATH_DIM = 7
"""The part of a state that says where an episode went: hand, gripper, first object."""

_WORTH_HIDING = 0.05
"""Part of a chunk's time from which planning is worth being done while others are simulated."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one episode of T steps went.

    Attributes:
        start: Where it began.
        success: bool (T,), at each step.
        distance: float64 (T + 1,), before the first action and after each; metres (radians for lever-pull).
        actions: float32 (T, 4), as carried out.
        path: float32 (T + 1, 7), before the first action and after each: hand (3), gripper opening from 0 to 1, object
            (3), metres. In the first row some tasks still show the object where it was before the reset.
        query_steps: int64 (Q,), the steps before which the actor was asked.
        query_states: float64 (Q, 39), what it saw.
        clip_fraction: Fraction of the numbers it asked for that lay outside [-1, 1].
        crash: Why the simulation broke down, or None. A crashed episode has failed.
    """

    init_state: InitialState
    success: np.ndarray
    distance: np.ndarray
    actions: np.ndarray
    path: np.ndarray
    query_steps: np.ndarray
    query_states: np.ndarray
    clip_fraction: float
    crash: str | None = None

    def __len__(self) -> int:
        return len(self.success)

    @property
    def success_once(self) -> bool:
        """Whether any step succeeded: the benchmark's definition."""
        return self.crash is None and bool(self.success.any())

    @property
    def success_at_end(self) -> bool:
        """Whether the last step succeeded."""
        return self.crash is None and bool(len(self) and self.success[-1])

    @property
    def success_step(self) -> int | None:
        """The first step that succeeded."""
        return int(np.argmax(self.success)) if self.success_once else None


@dataclass
class _Recording:
    """An episode under way."""

    index: int
    init_state: InitialState
    state: np.ndarray = field(default_factory=lambda: np.full(STATE_DIM, np.nan))
    distance: list[np.ndarray] = field(default_factory=list)
    success: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    path: list[np.ndarray] = field(default_factory=list)
    query_states: list[np.ndarray] = field(default_factory=list)
    query_steps: list[int] = field(default_factory=list)
    num_steps: int = 0
    num_clipped: int = 0
    succeeded: bool = False
    crash: str | None = None

    def ask(self) -> np.ndarray:
        """Note that the actor is asked now, and return the state it is shown."""
        self.query_states.append(self.state)
        self.query_steps.append(self.num_steps)
        return self.state

    def add(self, planned: np.ndarray | None, answer: StepResult) -> None:
        """Note what came of the actions ``planned`` (N, 4), or of the reset."""
        step_batch = answer.step_batch
        if planned is None or step_batch is None:
            self.distance.append(np.array([answer.distance]))
            self.path.append(answer.state[None, :PATH_DIM].astype(np.float32))
        else:
            carried_out = planned[: len(step_batch)]
            self.num_clipped += int((np.abs(carried_out) > 1.0).sum())
            self.actions.append(np.clip(carried_out, -1.0, 1.0).astype(np.float32))
            self.success.append(step_batch.success)
            self.distance.append(step_batch.distance)
            self.path.append(step_batch.state[:, :PATH_DIM].astype(np.float32))
            self.num_steps += len(step_batch)
            self.succeeded = self.succeeded or bool(step_batch.success.any())
        self.state = answer.state

    def outcome(self) -> Outcome:
        return Outcome(
            init_state=self.init_state,
            success=np.concatenate([np.zeros(0, dtype=bool), *self.success]),
            distance=np.concatenate(self.distance),
            actions=np.concatenate([np.zeros((0, 4), dtype=np.float32), *self.actions]),
            path=np.concatenate(self.path),
            query_steps=np.array(self.query_steps),
            query_states=np.array(self.query_states).reshape(-1, STATE_DIM),
            clip_fraction=self.num_clipped / max(1, 4 * self.num_steps),
            crash=self.crash,
        )


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """How a rollout is spread.

    Attributes:
        num_rows: Environments at the same time.
        num_lanes: Groups that those of a process are divided into, so that one is simulated while another waits for
            its actions.
        reason: Why, with what was measured.
    """

    num_envs: int
    num_groups: int
    reason: str


def choose_num_envs(num_episodes: int, num_workers: int) -> int:
    """Return how many environments to run at once: all, or in waves of the same size."""
    per_worker = math.ceil(num_episodes / num_workers)
    waves = math.ceil(per_worker / MAX_ENVS)
    return min(num_episodes, num_workers * math.ceil(per_worker / waves))


def _choose_groups(num_envs: int, num_workers: int, planning_s: float, working_s: float) -> RolloutPlan:
    """Decide from the first chunk: what planning it took, and how long each process then worked on it."""
    busy = num_workers > 1 and planning_s > _WORTH_HIDING * working_s and num_envs >= 2 * num_workers
    num_groups = 2 if busy else 1
    reason = (
        f"{num_envs} environments in {num_workers} process{'es' if num_workers > 1 else ''}, "
        f"{num_groups} group{'s' if num_groups > 1 else ''} each: a chunk took {1000 * planning_s:.1f} ms to plan and "
        f"{1000 * working_s:.1f} ms to carry out"
    )
    return RolloutPlan(num_envs=num_envs, num_groups=num_groups, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a rollout stands.

    Attributes:
        num_episodes: Finished, and the parts done of those under way.
        num_succeeded: Of both.
    """

    num_episodes: float
    num_succeeded: int


class RolloutFunction(Protocol):
    """Rolls out on whatever it was made for."""

    def __call__(
        self,
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        stop_at_success: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """See :func:`rollout`."""
        ...


class RolloutPool:
    """Rolls out in processes of this machine: those that draw, for actors with views, and those that do not.

    They start with the first actor that needs them, and stay for the next.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        engine: str = "fast",
        num_envs: int = 0,
        on_plan: Callable[[RolloutPlan], None] = lambda plan: None,
    ) -> None:
        """Use so many processes; see :func:`rollout`."""
        self._num_workers = num_workers
        self._engine = engine
        self._num_rows = num_envs
        self._on_sizes = on_plan
        self._simulators: dict[CameraViews | None, VectorSimulator] = {}

    def __call__(
        self,
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        stop_at_success: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Roll out; see :func:`rollout`."""
        if agent.views not in self._simulators:
            alone = self._num_workers == 1 and agent.views is None  # then this process can do it
            self._simulators[agent.views] = VectorSimulator(
                0 if alone else self._num_workers, engine=self._engine, views=agent.views
            )
        return rollout(
            self._simulators[agent.views], agent, init_states, num_envs=self._num_rows, stop_at_success=stop_at_success,
            on_progress=on_progress, on_plan=self._on_sizes,
        )  # fmt: skip

    def close(self) -> None:
        """End the processes."""
        for simulators in self._simulators.values():
            simulators.close()

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def roll_with(executor: Executor, engine: str) -> RolloutFunction:
    """Roll out as jobs of an executor, each with its own copy of the actor and a share of the starts.

    Its processes need a GL library in their environment for actors with views.
    """

    def roll(
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        stop_at_success: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        size = min(SHARE, math.ceil(len(init_states) / executor.num_workers))
        shares = [init_states[begin : begin + size] for begin in range(0, len(init_states), size)]
        outcomes: list[Outcome] = []
        for share in executor.map(rollout_share, [(engine, agent, share, stop_at_success) for share in shares]):
            outcomes += share
            num_succeeded = sum(outcome.success_once for outcome in outcomes)
            on_progress(Progress(num_episodes=len(outcomes), num_succeeded=num_succeeded))
        return outcomes

    return roll


def rollout_share(
    engine: str, agent: Agent, init_states: Sequence[InitialState], stop_at_success: bool
) -> list[Outcome]:
    """Roll out some episodes in whatever process this is."""
    with VectorSimulator(0, engine=engine, views=agent.views) as simulators:
        return rollout(simulators, agent, init_states, stop_at_success=stop_at_success)


class _Waiting:
    """The episodes that wait to be begun: to each process neighbours, so that it compiles models of few tasks."""

    def __init__(self, num: int, num_workers: int) -> None:
        ends = [num * i // num_workers for i in range(num_workers + 1)]
        self._shares = [deque(range(first, end)) for first, end in itertools.pairwise(ends)]

    def take(self, worker: int) -> int | None:
        """Return the next episode of a process; when it has had its own, the last of whoever has most left."""
        if self._shares[worker]:
            return self._shares[worker].popleft()
        most = max(self._shares, key=len)
        return most.pop() if most else None


def _check_plan(agent: Agent, chunks: object, num_envs: int) -> np.ndarray:
    """Return what an actor planned for some environments, (B, N, 4), if it can be carried out."""
    name = type(agent).__name__
    planned = as_array(chunks, f"The actions of {name}", (num_envs, "N", ACTION_DIM))
    if not planned.shape[1]:
        raise ArrayError(f"{name} planned no action: expected one or more for each environment.")
    return planned


def rollout(
    simulators: VectorSimulator,
    agent: Agent,
    init_states: Sequence[InitialState],
    *,
    num_envs: int = 0,
    stop_at_success: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_plan: Callable[[RolloutPlan], None] = lambda plan: None,
) -> list[Outcome]:
    """Let ``agent`` run one episode from each start, to the horizon or (at the end of a chunk) to its first success.

    The starts may be of several tasks; those of one task are best neighbours, for each process compiles the models of
    the tasks that come its way. All environments that wait are planned for together. ``num_envs`` environments run at
    the same time (0: as many as are worth it); how they are spread is told to ``on_plan`` once it is known.

    Raises:
        ArrayError: The actor plans what are no finite actions, (B, N, 4).
    """
    assert agent.views == simulators.views, "the simulators draw for another actor"
    num_envs = num_envs or choose_num_envs(len(init_states), simulators.num_workers)
    plan: RolloutPlan | None = None
    outcomes: dict[int, Outcome] = {}
    waiting = _Waiting(len(init_states), simulators.num_workers)
    live: dict[int, _Recording] = {}
    planned: dict[int, np.ndarray] = {}
    sent_at = planning_s = 0.0
    num_succeeded = 0

    def begin(rows: Iterable[int]) -> None:
        begun: dict[int, InitialState] = {}
        for row in rows:
            index = waiting.take(row % simulators.num_workers)
            if index is not None:
                begun[row] = init_states[index]
                live[row] = _Recording(index, init_states[index])
                agent.begin(row, init_states[index])
        simulators.reset(begun)

    begin(range(num_envs))
    arrived: dict[int, StepResult] = {}
    while live:
        answers = simulators.receive()
        if plan is None and planned:
            plan = _choose_groups(num_envs, simulators.num_workers, planning_s, time.perf_counter() - sent_at)
            on_plan(plan)
        done = []
        for row, answer in answers.items():
            recording = live[row]
            actions = planned.pop(row, None)
            if isinstance(answer, SimulationFailure):
                recording.crash = answer.message
            else:
                recording.add(actions, answer)
            finished = recording.num_steps == HORIZON or (stop_at_success and recording.succeeded)
            if finished or recording.crash is not None:
                outcomes[recording.index] = live.pop(row).outcome()
                num_succeeded += outcomes[recording.index].success_once
                done.append(row)
            else:
                assert isinstance(answer, StepResult)
                arrived[row] = answer
        parts = sum(recording.num_steps / HORIZON for recording in live.values())
        succeeding = sum(recording.succeeded for recording in live.values())
        on_progress(Progress(num_episodes=len(outcomes) + parts, num_succeeded=num_succeeded + succeeding))
        begin(done)
        if plan is None and len(arrived) < len(live):
            continue  # the first chunk is planned for all at once, and measured
        if arrived:
            began = time.perf_counter()
            rows = sorted(arrived)
            images = np.stack([arrived[row].images for row in rows]) if agent.views else None  # type: ignore[misc]
            chunks = agent.plan(np.stack([live[row].ask() for row in rows]), np.array(rows), images)
            planned |= zip(rows, _check_plan(agent, chunks, len(rows)), strict=True)
            sent_at = time.perf_counter()
            planning_s = sent_at - began
            simulators.seconds["planning"] += planning_s
            num_groups = plan.num_groups if plan else 1
            for group in range(num_groups):
                of_group = [row for row in rows if row // simulators.num_workers % num_groups == group]
                simulators.step({row: planned[row] for row in of_group})
            arrived = {}
    return [outcomes[index] for index in range(len(init_states))]
