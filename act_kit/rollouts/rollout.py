"""Rollouts of an agent from given initial states, in many environments at once.

The result of an episode depends only on its initial state and the agent, not on the number of processes or on the other
episodes.
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
"""Maximum number of simultaneous environments per process; more are not faster, and each needs about 1 MB."""

EPISODES_PER_JOB = 16
"""Maximum number of episodes per job of an executor; a job is repeated as a whole if its node dies."""

PATH_DIM = 7
"""Size of the part of a state that describes the path of an episode: hand, gripper, first object."""

_MIN_PLANNING_RATIO = 0.05
"""Ratio of planning time to simulation time above which two groups per process are faster than one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one episode of T steps.

    Attributes:
        init_state: Initial state.
        success: bool (T,), at each step.
        distance: float64 (T + 1,), before the first action and after each action; meters (radians for lever-pull).
        actions: float32 (T, 4), the executed actions.
        path: float32 (T + 1, 7), before the first action and after each action: hand (3), gripper opening from 0 to 1,
            object (3), meters. In some tasks, the first row contains the object's position before the reset.
        query_steps: int64 (Q,), the steps before which the agent planned.
        query_states: float64 (Q, 39), the states at these steps.
        clip_fraction: Fraction of the planned numbers that were outside [-1, 1].
        crash: Error message of the simulation, or None. A crashed episode counts as failed.
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
        """True if any step succeeded: the benchmark's definition."""
        return self.crash is None and bool(self.success.any())

    @property
    def success_at_end(self) -> bool:
        """True if the last step succeeded."""
        return self.crash is None and bool(len(self) and self.success[-1])

    @property
    def success_step(self) -> int | None:
        """First successful step, or None."""
        return int(np.argmax(self.success)) if self.success_once else None


@dataclass
class _EpisodeRecorder:
    """Recorder of one running episode."""

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

    def record_query(self) -> np.ndarray:
        """Record that the agent plans at this step, and return the current state."""
        self.query_states.append(self.state)
        self.query_steps.append(self.num_steps)
        return self.state

    def record(self, planned: np.ndarray | None, result: StepResult) -> None:
        """Record the result of the planned actions (N, 4), or of the reset if ``planned`` is None."""
        step_batch = result.step_batch
        if planned is None or step_batch is None:
            self.distance.append(np.array([result.distance]))
            self.path.append(result.state[None, :PATH_DIM].astype(np.float32))
        else:
            executed = planned[: len(step_batch)]
            self.num_clipped += int((np.abs(executed) > 1.0).sum())
            self.actions.append(np.clip(executed, -1.0, 1.0).astype(np.float32))
            self.success.append(step_batch.success)
            self.distance.append(step_batch.distance)
            self.path.append(step_batch.state[:, :PATH_DIM].astype(np.float32))
            self.num_steps += len(step_batch)
            self.succeeded = self.succeeded or bool(step_batch.success.any())
        self.state = result.state

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
    """Distribution of a rollout over environments.

    Attributes:
        num_envs: Number of simultaneous environments.
        num_groups: Number of groups of environments per process; one group is simulated while the actions of another
            are planned.
        reason: Reason for the plan, with the measured times.
    """

    num_envs: int
    num_groups: int
    reason: str


def choose_num_envs(num_episodes: int, num_workers: int) -> int:
    """Return the number of simultaneous environments: all episodes at once, or waves of equal size."""
    per_worker = math.ceil(num_episodes / num_workers)
    waves = math.ceil(per_worker / MAX_ENVS)
    return min(num_episodes, num_workers * math.ceil(per_worker / waves))


def _choose_groups(num_envs: int, num_workers: int, planning_s: float, simulation_s: float) -> RolloutPlan:
    """Choose the number of groups from the times that the first chunk took to plan and to simulate."""
    busy = num_workers > 1 and planning_s > _MIN_PLANNING_RATIO * simulation_s and num_envs >= 2 * num_workers
    num_groups = 2 if busy else 1
    reason = (
        f"{num_envs} environments in {num_workers} process{'es' if num_workers > 1 else ''}, "
        f"{num_groups} group{'s' if num_groups > 1 else ''} each: a chunk took {1000 * planning_s:.1f} ms to plan and "
        f"{1000 * simulation_s:.1f} ms to execute"
    )
    return RolloutPlan(num_envs=num_envs, num_groups=num_groups, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a rollout.

    Attributes:
        num_episodes: Number of finished episodes plus the finished fractions of running episodes.
        num_succeeded: Number of finished and running episodes that have succeeded.
    """

    num_episodes: float
    num_succeeded: int


class RolloutFunction(Protocol):
    """Function that runs an agent from given initial states; its executor is fixed."""

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
    """Rollouts in local processes, with separate processes for agents with views.

    The processes start with the first agent that needs them, and are reused for later agents.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        engine: str = "fast",
        num_envs: int = 0,
        on_plan: Callable[[RolloutPlan], None] = lambda plan: None,
    ) -> None:
        """Use ``num_workers`` processes; see :func:`rollout` for the other arguments."""
        self._num_workers = num_workers
        self._engine = engine
        self._num_envs = num_envs
        self._on_plan = on_plan
        self._simulators: dict[CameraViews | None, VectorSimulator] = {}

    def __call__(
        self,
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        stop_at_success: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Run a rollout; see :func:`rollout`."""
        if agent.views not in self._simulators:
            in_this_process = self._num_workers == 1 and agent.views is None
            self._simulators[agent.views] = VectorSimulator(
                0 if in_this_process else self._num_workers, engine=self._engine, views=agent.views
            )
        return rollout(
            self._simulators[agent.views],
            agent,
            init_states,
            num_envs=self._num_envs,
            stop_at_success=stop_at_success,
            on_progress=on_progress,
            on_plan=self._on_plan,
        )

    def close(self) -> None:
        """Stop the processes."""
        for simulators in self._simulators.values():
            simulators.close()

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def roll_with(executor: Executor, engine: str) -> RolloutFunction:
    """Return a function that runs rollouts as jobs of an executor, each with a copy of the agent and some episodes.

    For agents with views, the environment of the executor's processes must select an OpenGL library.
    """

    def roll(
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        stop_at_success: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        size = min(EPISODES_PER_JOB, math.ceil(len(init_states) / executor.num_workers))
        jobs = []
        for begin in range(0, len(init_states), size):
            jobs.append((engine, agent, init_states[begin : begin + size], stop_at_success))
        outcomes: list[Outcome] = []
        for share in executor.map(rollout_share, jobs):
            outcomes += share
            num_succeeded = sum(outcome.success_once for outcome in outcomes)
            on_progress(Progress(num_episodes=len(outcomes), num_succeeded=num_succeeded))
        return outcomes

    return roll


def rollout_share(
    engine: str, agent: Agent, init_states: Sequence[InitialState], stop_at_success: bool
) -> list[Outcome]:
    """Run some episodes of a rollout in this process."""
    with VectorSimulator(0, engine=engine, views=agent.views) as simulators:
        return rollout(simulators, agent, init_states, stop_at_success=stop_at_success)


class _EpisodeQueue:
    """Queue of pending episodes; each process gets consecutive episodes, so it compiles the models of few tasks."""

    def __init__(self, num: int, num_workers: int) -> None:
        ends = [num * i // num_workers for i in range(num_workers + 1)]
        self._shares = [deque(range(first, end)) for first, end in itertools.pairwise(ends)]

    def take(self, worker: int) -> int | None:
        """Return the next episode of a process, or the last one of the fullest share if its own share is empty."""
        if self._shares[worker]:
            return self._shares[worker].popleft()
        fullest = max(self._shares, key=len)
        return fullest.pop() if fullest else None


def _check_plan(agent: Agent, chunks: object, num_envs: int) -> np.ndarray:
    """Return the planned actions (B, N, 4), or raise :class:`ArrayError` if they are invalid."""
    name = type(agent).__name__
    planned = as_array(chunks, f"The actions of {name}", (num_envs, "N", ACTION_DIM))
    if not planned.shape[1]:
        raise ArrayError(f"{name} planned no actions: expected at least one for each environment.")
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
    """Run one episode of ``agent`` from each initial state; return the results in the same order.

    An episode ends at the horizon or, with ``stop_at_success``, at the end of the chunk of its first success. The
    initial states can be of several tasks; initial states of one task should be adjacent, because each process compiles
    the models of its tasks. The agent plans for all waiting environments together. ``num_envs`` environments run at the
    same time (0 = automatic); ``on_plan`` is called when their distribution is known.

    Raises:
        ArrayError: The planned actions are not finite numbers, (B, N, 4).
    """
    assert agent.views == simulators.views, "the simulators render other views than the agent needs"
    num_envs = num_envs or choose_num_envs(len(init_states), simulators.num_workers)
    plan: RolloutPlan | None = None
    outcomes: dict[int, Outcome] = {}
    pending = _EpisodeQueue(len(init_states), simulators.num_workers)
    running: dict[int, _EpisodeRecorder] = {}
    planned: dict[int, np.ndarray] = {}
    sent_at = planning_s = 0.0
    num_succeeded = 0

    def begin_episodes(rows: Iterable[int]) -> None:
        resets: dict[int, InitialState] = {}
        for row in rows:
            index = pending.take(row % simulators.num_workers)
            if index is not None:
                resets[row] = init_states[index]
                running[row] = _EpisodeRecorder(index, init_states[index])
                agent.begin(row, init_states[index])
        simulators.reset(resets)

    begin_episodes(range(num_envs))
    waiting: dict[int, StepResult] = {}
    while running:
        results = simulators.receive()
        if plan is None and planned:
            plan = _choose_groups(num_envs, simulators.num_workers, planning_s, time.perf_counter() - sent_at)
            on_plan(plan)
        done = []
        for row, result in results.items():
            recorder = running[row]
            actions = planned.pop(row, None)
            if isinstance(result, SimulationFailure):
                recorder.crash = result.message
            else:
                recorder.record(actions, result)
            finished = recorder.num_steps == HORIZON or (stop_at_success and recorder.succeeded)
            if finished or recorder.crash is not None:
                outcomes[recorder.index] = running.pop(row).outcome()
                num_succeeded += outcomes[recorder.index].success_once
                done.append(row)
            else:
                assert isinstance(result, StepResult)
                waiting[row] = result
        running_episodes = sum(recorder.num_steps / HORIZON for recorder in running.values())
        running_succeeded = sum(recorder.succeeded for recorder in running.values())
        num_episodes = len(outcomes) + running_episodes
        on_progress(Progress(num_episodes=num_episodes, num_succeeded=num_succeeded + running_succeeded))
        begin_episodes(done)
        if plan is None and len(waiting) < len(running):
            continue  # the first chunk is planned for all environments together, to measure its times
        if waiting:
            planning_start = time.perf_counter()
            rows = sorted(waiting)
            states = np.stack([running[row].record_query() for row in rows])
            images = np.stack([waiting[row].images for row in rows]) if agent.views else None  # type: ignore[misc]
            chunks = agent.plan(states, np.array(rows), images)
            planned |= zip(rows, _check_plan(agent, chunks, len(rows)), strict=True)
            sent_at = time.perf_counter()
            planning_s = sent_at - planning_start
            simulators.seconds["planning"] += planning_s
            num_groups = plan.num_groups if plan else 1
            for group in range(num_groups):
                group_rows = [row for row in rows if row // simulators.num_workers % num_groups == group]
                simulators.step({row: planned[row] for row in group_rows})
            waiting = {}
    return [outcomes[index] for index in range(len(init_states))]
