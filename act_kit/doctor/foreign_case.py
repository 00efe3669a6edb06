"""A policy of which only the behavior is known, and the measurements from which the doctor judges it.

The reference is the scripted expert: its episodes give the observations that the policy is asked about, and the actions
that those of a good policy agree with. All measurements are made when first used.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property

import numpy as np

from act_kit.arrays import as_array
from act_kit.doctor.foreign_changes import ActionChange, best_change
from act_kit.errors import ActKitError, ConfigError, ServingError
from act_kit.parallel import LocalExecutor
from act_kit.rollouts.agents import ActionChunks, Agent, ExpertAgent, as_chunks
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool, rollout
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, find_gl, render_episode
from act_kit.sim.tasks import ACTION_DIM, HORIZON
from act_kit.sim.vector import VectorSimulator

NUM_EPISODES = 16
"""Number of the expert's episodes, and of each rollout: 6 of 16 that only one of two policies solves have p = 0.03."""

NUM_TIMES = 10
"""Number of observations of each episode that the policy is asked about, from the first to the last before success."""

_NUM_DRAWN = 32
_SEED = 7
_SUCCEEDS = 0.75
"""Least success rate, of episodes that the expert solves, of a policy that needs no further changes."""

Change = Callable[[np.ndarray], np.ndarray]


class Trial(Agent):
    """A policy with a change of its actions or its images, whose episodes end after a number of steps.

    Attributes:
        num_queries: Number of observations that the policy was asked about.
    """

    def __init__(
        self,
        agent: Agent,
        max_steps: int,
        *,
        change_actions: Change = lambda actions: actions,
        change_images: Change = lambda images: images,
        views: CameraViews | None = None,
        num_asks: int = 1,
    ) -> None:
        """Change actions (B, N, 4) and images (B, C, H, W, 3), show other ``views``, or ask several times."""
        self.views = views or agent.views
        self._agent, self._max_steps, self._num_asks = agent, max_steps, num_asks
        self._change_actions, self._change_images = change_actions, change_images
        self._num_steps: dict[int, int] = {}
        self.num_queries = 0

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Begin an episode of the policy."""
        self._num_steps[row] = 0
        self._agent.begin(row, init_state, attempt)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Return the policy's actions with the change; an episode that is too long ends."""
        steps = np.array([self._num_steps[row] for row in rows.tolist()])
        running = np.flatnonzero(steps < self._max_steps)
        if not len(running):
            return ActionChunks(actions=np.zeros((len(rows), 1, ACTION_DIM)), ends=np.ones(len(rows), dtype=bool))
        shown = None if images is None else self._change_images(images[running])
        try:
            for _ in range(self._num_asks):
                chunks = as_chunks(self._agent.plan(states[running], rows[running], shown))
                self.num_queries += len(running)
            planned = np.asarray(chunks.actions, dtype=np.float64)
            is_finite = np.atleast_1d(np.isfinite(planned).all(axis=(1, 2)))
        except Exception as error:  # the policy's, which ends its episodes as a server's error does
            failed = dict.fromkeys(running.tolist(), _described(error))
            return ActionChunks(
                actions=np.zeros((len(rows), 1, ACTION_DIM)), ends=steps >= self._max_steps, failures=failed
            )
        changed = self._change_actions(np.where(is_finite[:, None, None], planned, 0))
        actions = np.zeros((len(rows), *changed.shape[1:]))
        actions[running] = changed
        for row in rows[running].tolist():
            self._num_steps[row] += changed.shape[1]
        ends = steps >= self._max_steps
        if chunks.ends is not None:
            ends[running] |= chunks.ends
        failures = {int(running[i]): "It sends NaN or infinity." for i in np.flatnonzero(~is_finite)}
        failures |= {int(running[i]): message for i, message in chunks.failures.items()}
        return ActionChunks(actions=actions, ends=ends, failures=failures)


def _described(error: Exception) -> str:
    """Return an error of a policy, with the place in its code."""
    if isinstance(error, ActKitError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"It fails at {place.filename}, line {place.lineno}: {type(error).__name__}: {error}"


class ForeignCase:
    """A policy that is not a run of act_kit, and what it answers. :meth:`close` stops the doctor's processes.

    Attributes:
        failures: Errors of the policy when it was asked about observations of its own task.
    """

    def __init__(self, agent: Agent, name: str, task: str, *, num_workers: int = 1) -> None:
        """Examine an agent on a task; ``num_workers`` processes render, if it sees images."""
        self.agent = agent
        self.name = name
        self.task = task
        self.num_queries = 0
        self.failures: list[str] = []
        self._shown_task = task
        self._num_workers = num_workers
        self._resources = ExitStack()
        self._pool = self._resources.enter_context(RolloutPool(num_workers if agent.views else 1))

    def close(self) -> None:
        """Stop the processes."""
        self._resources.close()

    # -- the expert ------------------------------------------------------------------------------------------------

    @cached_property
    def episodes(self) -> list[Episode]:
        """Episodes in which the expert succeeds, with the physics, to the first success."""
        drawn = InitialStateDistribution(self.task).sample(_NUM_DRAWN, seed=_SEED, stream="validate")
        found: list[Episode] = []
        with VectorSimulator(0) as simulators:
            for first in range(0, _NUM_DRAWN, NUM_EPISODES):
                batch = drawn[first : first + NUM_EPISODES]
                episodes = rollout(simulators, ExpertAgent(), batch, steps_after_success=0, physics=True)
                found += [episode for episode in episodes if episode.success_once]
                if len(found) >= NUM_EPISODES:
                    return found[:NUM_EPISODES]
        raise ConfigError(
            f"The scripted expert solves only {len(found)} of {_NUM_DRAWN} episodes of {self.task}: the doctor "
            f"compares a policy with {NUM_EPISODES}."
        )

    @cached_property
    def max_steps(self) -> int:
        """Number of steps that a policy gets: twice as many as the expert ever needs, and 50 more."""
        return min(HORIZON, 50 + 2 * max(map(len, self.episodes)))

    @cached_property
    def init_states(self) -> list[InitialState]:
        """Initial states of the expert's episodes."""
        return [episode.init_state for episode in self.episodes]

    @cached_property
    def times(self) -> np.ndarray:
        """Steps of the observations, int (E, S)."""
        return np.array([np.linspace(0, len(episode) - 1, NUM_TIMES).astype(int) for episode in self.episodes])

    @cached_property
    def states(self) -> np.ndarray:
        """States of the observations, float64 (E, S, 39)."""
        return np.stack([episode.state[times] for episode, times in zip(self.episodes, self.times, strict=True)])

    def expert_actions(self, offset: int = 0) -> np.ndarray:
        """Return the expert's actions some steps after the observations, (E, S, 4); NaN outside of an episode."""
        actions = np.full((NUM_EPISODES, NUM_TIMES, ACTION_DIM), np.nan)
        for i, episode in enumerate(self.episodes):
            steps = self.times[i] + offset
            inside = (steps >= 0) & (steps < len(episode))
            actions[i, inside] = episode.executed_action[steps[inside]]
        return actions

    def images(self, views: CameraViews) -> np.ndarray:
        """Render the observations, uint8 (E, S, C, H, W, 3)."""
        jobs = []
        for i, episode in enumerate(self.episodes):
            jobs.append((views.settings, views.cameras, episode.init_state, episode.physics[self.times[i]]))
        return np.stack([frames.images for frames in self._renderers.map(render_episode, jobs)])

    @cached_property
    def _renderers(self) -> LocalExecutor:
        """Processes that render, which take seconds to start."""
        gl = find_gl(self._num_workers)
        return self._resources.enter_context(LocalExecutor(self._num_workers, gl.environment))

    @cached_property
    def shown_images(self) -> np.ndarray | None:
        """Images of the observations as the policy sees them; None if it sees none."""
        return None if self.agent.views is None else self.images(self.agent.views)

    # -- the policy's answers --------------------------------------------------------------------------------------

    def begin(self, rows: Sequence[int], episodes: Sequence[int], task: str = "") -> None:
        """Begin episodes in rows; a server is connected to anew."""
        self._shown_task = task or self.task
        for row, episode in zip(rows, episodes, strict=True):
            init_state = self.init_states[episode]
            self.agent.begin(row, InitialState(task or self.task, init_state.rand_vec), episode)

    def ask(
        self,
        rows: Sequence[int],
        episodes: Sequence[int],
        times: Sequence[int] | int,
        *,
        states: np.ndarray | None = None,
        images: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the actions (B, N, 4) for observations, each an episode and the index of its time.

        ``states`` (B, 39) or ``images`` (B, C, H, W, 3) replace those of the observations.

        Raises:
            ActKitError: The policy raises an error or does not answer with finite actions.
        """
        num = len(rows)
        states = self.states[episodes, times] if states is None else states
        if images is None and self.shown_images is not None:
            images = self.shown_images[episodes, times]
        self.num_queries += num
        try:
            chunks = as_chunks(self.agent.plan(states.copy(), np.array(rows), images))
            if chunks.failures:
                raise ServingError(f"{self.name}: {next(iter(chunks.failures.values()))}")
            return as_array(chunks.actions, f"The actions of {self.name}", (num, "N", ACTION_DIM)).astype(np.float64)
        except Exception as error:
            if self._shown_task == self.task:  # it may refuse another one's prompt
                self.failures.append(_described(error))
            if isinstance(error, ActKitError):
                raise
            raise ConfigError(f"{self.name}: {_described(error)}") from error

    @cached_property
    def chunks(self) -> np.ndarray:
        """Answers to all observations, each the first of an episode, (E, S, N, 4)."""
        rows = list(range(NUM_EPISODES))
        answers: list[np.ndarray] = []
        for time in range(NUM_TIMES):
            self.begin(rows, rows)
            answers.append(self.ask(rows, rows, time))
        return np.stack(answers, axis=1)

    @property
    def actions(self) -> np.ndarray:
        """First action of each answer, (E, S, 4)."""
        return self.chunks[:, :, 0]

    @cached_property
    def best_change(self) -> ActionChange:
        """Change of the actions with which they agree best with the expert's."""
        return best_change(self.actions, self.expert_actions())

    # -- rollouts --------------------------------------------------------------------------------------------------

    def roll(
        self,
        *,
        agent: Agent | None = None,
        change_actions: Change = lambda actions: actions,
        change_images: Change = lambda images: images,
        views: CameraViews | None = None,
        num_asks: int = 1,
    ) -> list[Episode]:
        """Roll out the policy, or another agent, with a change, from the initial states of the expert's episodes."""
        trial = Trial(
            agent or self.agent,
            self.max_steps,
            change_actions=change_actions,
            change_images=change_images,
            views=views,
            num_asks=num_asks,
        )
        episodes = self._pool(trial, self.init_states, stop_at_success=True)
        if agent is None:
            self.num_queries += trial.num_queries
        return episodes

    @cached_property
    def as_shown(self) -> list[Episode]:
        """Rollouts of the policy as it is."""
        return self.roll()

    @property
    def num_succeeded(self) -> int:
        """Number of rollouts in which the policy succeeds."""
        return sum(episode.success_once for episode in self.as_shown)

    @property
    def succeeds(self) -> bool:
        """True if the policy solves most of what the expert solves."""
        return self.num_succeeded >= _SUCCEEDS * NUM_EPISODES
