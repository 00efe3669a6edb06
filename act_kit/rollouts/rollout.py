"""Rollouts of an agent from given initial states, in many environments at once.

The result of an episode depends only on its initial state and the agent, not on the number of processes or on the other
episodes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError
from act_kit.parallel import Executor
from act_kit.rollouts.agents import ActionChunks, Agent, as_chunks
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import BENCHMARK_RULES, EpisodeRecorder, EpisodeRules
from act_kit.sim.engine import clip_actions
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews
from act_kit.sim.tasks import ACTION_DIM
from act_kit.sim.vector import SimulationFailure, StepResult, VectorSimulator

MAX_ENVS = 64
"""Maximum number of simultaneous environments per process; more are not faster, and each needs about 1 MB."""

EPISODES_PER_JOB = 16
"""Maximum number of episodes per job of an executor; a job is repeated as a whole if its node dies."""

_MIN_PLANNING_RATIO = 0.05
"""Ratio of planning time to simulation time above which two groups per process are faster than one."""


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
        rules: EpisodeRules = BENCHMARK_RULES,
        stop_at_success: bool = False,
        rewards: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Episode]:
        """See :func:`rollout`; ``stop_at_success`` means no steps after the first success."""
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
        rules: EpisodeRules = BENCHMARK_RULES,
        stop_at_success: bool = False,
        rewards: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Episode]:
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
            rules=rules,
            steps_after_success=0 if stop_at_success else None,
            rewards=rewards,
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


def make_rollout_function(executor: Executor, engine: str) -> RolloutFunction:
    """Return a function that runs rollouts as jobs of an executor, each with a copy of the agent and some episodes.

    For agents with views, the environment of the executor's processes must select an OpenGL library.
    """

    def roll(
        agent: Agent,
        init_states: Sequence[InitialState],
        *,
        rules: EpisodeRules = BENCHMARK_RULES,
        stop_at_success: bool = False,
        rewards: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Episode]:
        size = min(EPISODES_PER_JOB, math.ceil(len(init_states) / executor.num_workers))
        jobs = []
        for first in range(0, len(init_states), size):
            jobs.append((engine, agent, init_states[first : first + size], first, rules, stop_at_success, rewards))
        episodes: list[Episode] = []
        for episodes_of_job in executor.map(rollout_job, jobs):
            episodes += episodes_of_job
            num_succeeded = sum(episode.success_once for episode in episodes)
            on_progress(Progress(num_episodes=len(episodes), num_succeeded=num_succeeded))
        return episodes

    return roll


def rollout_job(
    engine: str,
    agent: Agent,
    init_states: Sequence[InitialState],
    first_attempt: int,
    rules: EpisodeRules,
    stop_at_success: bool,
    rewards: bool,
) -> list[Episode]:
    """Run some episodes of a rollout in this process."""
    with VectorSimulator(0, engine=engine, views=agent.views) as simulators:
        return rollout(
            simulators,
            agent,
            init_states,
            first_attempt=first_attempt,
            rules=rules,
            steps_after_success=0 if stop_at_success else None,
            rewards=rewards,
        )


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


def _check_chunks(agent: Agent, chunks: ActionChunks, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of the actions and the labels (B, N, 4), or raise :class:`ArrayError` if they are invalid."""
    name = type(agent).__name__
    actions = as_array(chunks.actions, f"The actions of {name}", (num_envs, "N", ACTION_DIM)).copy()
    if not actions.shape[1]:
        raise ArrayError(f"{name} planned no actions: expected at least one for each environment.")
    if chunks.labels is None:
        return actions, actions
    labels = as_array(chunks.labels, f"The labels of {name}", actions.shape)
    if np.abs(labels).max() > 1:
        raise ArrayError(f"The labels of {name} reach {np.abs(labels).max():g}: expected [-1, 1]. Fix: np.clip them")
    return actions, labels.astype(np.float32)


class _Rollout:
    """Episodes of one rollout: finished, running and pending.

    Attributes:
        episodes: Finished episodes, by attempt.
        running: Recorders of the running episodes, by row.
        waiting: Images of the rows that wait for actions; None without views.
    """

    def __init__(
        self,
        simulators: VectorSimulator,
        agent: Agent,
        init_states: Sequence[InitialState],
        first_attempt: int,
        rules: EpisodeRules,
        steps_after_success: int | None,
    ) -> None:
        self._simulators = simulators
        self._agent = agent
        self._init_states = init_states
        self._first_attempt = first_attempt
        self._rules = rules
        self._steps_after_success = steps_after_success
        self._pending = _EpisodeQueue(len(init_states), simulators.num_workers)
        self._num_succeeded = 0
        self.episodes: dict[int, Episode] = {}
        self.running: dict[int, EpisodeRecorder] = {}
        self.waiting: dict[int, np.ndarray | None] = {}
        self._executing: set[int] = set()

    def begin(self, rows: Iterable[int]) -> None:
        """Begin pending episodes in free rows."""
        resets: dict[int, InitialState] = {}
        for row in rows:
            index = self._pending.take(row % self._simulators.num_workers)
            if index is not None:
                resets[row] = self._init_states[index]
                attempt = self._first_attempt + index
                self._agent.begin(row, resets[row], attempt)
                self.running[row] = EpisodeRecorder(
                    resets[row], attempt=attempt, source=self._agent.source, rules=self._rules
                )
        self._simulators.reset(resets, settle_steps=self._rules.settle_steps)

    def finish(self, rows: Sequence[int]) -> None:
        """Finish the episodes of some rows, and begin pending ones there."""
        for row in rows:
            episode = self.running.pop(row).episode(notes=self._agent.finish(row))
            self.episodes[episode.attempt] = episode
            self._num_succeeded += episode.success_once
        if rows:
            self.begin(rows)

    def record(self, results: Mapping[int, StepResult | SimulationFailure]) -> None:
        """Record the results of some rows; their episodes then wait for actions, or are finished."""
        finished: list[int] = []
        self._executing -= results.keys()
        for row, result in results.items():
            recorder = self.running[row]
            if isinstance(result, SimulationFailure):
                recorder.crash = result.message
                finished.append(row)
                continue
            if result.step_batch is None:
                recorder.begin(result.state, result.distance)
            else:
                recorder.record(result.step_batch)
            if recorder.steps_left(self._steps_after_success):
                self.waiting[row] = result.images
            else:
                finished.append(row)
        self.finish(finished)

    def ready(self, num_groups: int) -> list[int]:
        """Return the rows to plan for: those of the groups of which no row executes actions.

        A row that was reset thus waits for its group. Otherwise it would be planned for alone from then on, and soon
        every row would.
        """
        num = self._simulators.num_workers * num_groups
        busy = {row % num for row in self._executing}
        return sorted(row for row in self.waiting if row % num not in busy)

    def plan(self, rows: Sequence[int]) -> tuple[dict[int, np.ndarray], list[int]]:
        """Plan for waiting rows; return the next actions (N, 4) by row, and the rows that the agent ends."""
        states = np.array([self.running[row].state for row in rows])
        waiting = [self.waiting.pop(row) for row in rows]
        images = np.stack(waiting) if self._agent.views else None  # type: ignore[arg-type]
        chunks = as_chunks(self._agent.plan(states, np.array(rows), images))
        actions, labels = _check_chunks(self._agent, chunks, len(rows))
        executed = clip_actions(actions)
        planned: dict[int, np.ndarray] = {}
        ended: list[int] = []
        for i, row in enumerate(rows):
            self.running[row].crash = chunks.failures.get(i)
            if i in chunks.failures or (chunks.ends is not None and chunks.ends[i]):
                ended.append(row)
            else:
                planned[row] = executed[i][: self.running[row].steps_left(None)]
                self.running[row].plan(actions[i], labels[i])
        self._executing.update(planned)
        return planned, ended

    def progress(self) -> Progress:
        """Return the progress, with the fractions of the running episodes."""
        num_episodes, num_succeeded = float(len(self.episodes)), self._num_succeeded
        for recorder in self.running.values():
            num_episodes += recorder.num_steps / self._rules.horizon
            num_succeeded += recorder.succeeded
        return Progress(num_episodes=num_episodes, num_succeeded=num_succeeded)


def rollout(
    simulators: VectorSimulator,
    agent: Agent,
    init_states: Sequence[InitialState],
    *,
    num_envs: int = 0,
    first_attempt: int = 0,
    rules: EpisodeRules = BENCHMARK_RULES,
    steps_after_success: int | None = None,
    rewards: bool = False,
    physics: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_plan: Callable[[RolloutPlan], None] = lambda plan: None,
) -> list[Episode]:
    """Run one episode of ``agent`` from each initial state; return the episodes in the same order.

    An episode ends at the horizon, where the agent ends it, or at the end of the chunk with which
    ``steps_after_success`` steps have followed its first success. The initial states can be of several tasks; initial
    states of one task should be adjacent, because each process compiles the models of its tasks. The agent plans for
    all waiting environments together.

    Args:
        simulators: Simulators with the views of the agent.
        agent: Agent.
        init_states: Initial states.
        num_envs: Number of environments that run at the same time; 0 = automatic.
        first_attempt: Number of the first episode; the others are numbered consecutively.
        rules: How the episodes begin and end.
        steps_after_success: Steps after the first success; None = to the horizon.
        rewards: Record Meta-World's dense reward, which takes longer than the simulation.
        physics: Record the physics state before each action.
        on_progress: Function called whenever results arrive.
        on_plan: Function called when the distribution over environments is known.

    Raises:
        ArrayError: The planned actions are not finite numbers, (B, N, 4), or labels are not in [-1, 1].
    """
    assert agent.views == simulators.views, "the simulators render other views than the agent needs"
    num_workers = simulators.num_workers
    num_envs = num_envs or choose_num_envs(len(init_states), num_workers)
    while simulators.receive():
        pass  # results of an interrupted rollout
    run = _Rollout(simulators, agent, init_states, first_attempt, rules, steps_after_success)
    run.begin(range(num_envs))
    plan: RolloutPlan | None = None
    sent_at = planning_s = 0.0
    while run.running:
        results = simulators.receive()
        if plan is None and sent_at:
            plan = _choose_groups(num_envs, num_workers, planning_s, time.perf_counter() - sent_at)
            on_plan(plan)
        run.record(results)
        on_progress(run.progress())
        num_groups = plan.num_groups if plan else 1
        # The first chunk is planned for all environments together, to measure its times.
        rows = run.ready(num_groups) if plan or len(run.waiting) == len(run.running) else []
        if not rows:
            continue
        planning_start = time.perf_counter()
        planned, ended = run.plan(rows)
        sent_at = time.perf_counter()
        planning_s = sent_at - planning_start
        simulators.seconds["planning"] += planning_s
        for group in range(num_groups):
            chunks = {row: chunk for row, chunk in planned.items() if row // num_workers % num_groups == group}
            simulators.execute(chunks, rewards=rewards, physics=physics)
        run.finish(ended)
    return [run.episodes[first_attempt + index] for index in range(len(init_states))]
