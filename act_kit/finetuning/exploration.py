"""Rollouts of an actor with noise, and the record of its decisions.

Shapes: B environments, E executed actions of a chunk, A action, I inputs of an actor, Q queries of one episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from act_kit.finetuning.actors import Actor
from act_kit.finetuning.advantages import Decisions, make_decisions
from act_kit.policies.first_states import FirstStates
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM

_LARGEST_NOISE = 3.0
"""Largest noise in standard deviations: a rare jump teaches nothing about its neighbors."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What an exploring agent chose in an episode.

    Attributes:
        inputs_QI: Inputs of the actor at every query, float32.
        actions_QEA: Actions before clipping, float32.
    """

    inputs_QI: Tensor
    actions_QEA: Tensor


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A running episode: its task's index, its noise, and the inputs and actions so far."""

    task: int
    rng: np.random.Generator
    inputs: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)


class ExploringAgent(Agent):
    """An actor with Gaussian noise on its executed actions.

    The noise of an episode is seeded by the seeds and its attempt, so it does not depend on the other episodes. The
    :class:`Choices` are the notes of an episode.
    """

    def __init__(self, actor: Actor, sigma: Tensor, *, seeds: Sequence[int]) -> None:
        """Explore with the standard deviation ``sigma`` (A,) of each number of an action.

        ``seeds`` are those of the run and of the iteration: attempts are numbered anew in each.
        """
        self.views = actor.policy.views
        self._actor, self._policy, self._sigma, self._seeds = actor, actor.policy, sigma.cpu(), tuple(seeds)
        self._rows: dict[int, _Running] = {}
        self._first_states = FirstStates()

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Seed the noise by the attempt."""
        self._first_states.reset(np.array([row]))
        rng = np.random.default_rng([*self._seeds, attempt])
        self._rows[row] = _Running(task=self._policy.tasks.index(init_state.task), rng=rng)

    def finish(self, row: int) -> Choices | None:
        """Return the choices of the episode; None if it ended before the first."""
        running = self._rows.pop(row)
        if not running.inputs:
            return None
        return Choices(inputs_QI=torch.stack(running.inputs), actions_QEA=torch.stack(running.actions))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return noisy actions (B, E, A), and record them."""
        running = [self._rows[int(row)] for row in rows]
        shape = (self._actor.num_actions, ACTION_DIM)
        noise = np.stack([each.rng.standard_normal(shape) for each in running]).clip(-_LARGEST_NOISE, _LARGEST_NOISE)
        inputs: list[Tensor] = []
        means: list[Tensor] = []
        with torch.inference_mode():
            tasks = np.array([each.task for each in running])
            first_states = self._first_states.of(rows, states)
            for observation, num_rows in self._policy.observe(states, images, tasks, first_states):
                inputs_BI = self._actor.inputs_of(observation)
                # In the block too: a product of another number of rows would differ in its last bits.
                means.append(self._actor.means(inputs_BI)[:num_rows])
                inputs.append(inputs_BI[:num_rows])
            inputs_BI, means_BEA = torch.cat(inputs), torch.cat(means)
        actions_BEA = means_BEA.cpu() + self._sigma * torch.from_numpy(noise.astype(np.float32))
        for index, each in enumerate(running):
            each.inputs.append(inputs_BI[index].cpu())
            each.actions.append(actions_BEA[index])
        planned: np.ndarray = actions_BEA.numpy()
        return planned


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Decisions of several episodes, one after the other; Q counts those of all.

    Attributes:
        inputs_QI: Inputs of the actor, float32.
        actions_QEA: Actions before clipping, float32.
        num_executed_Q: Number of actions up to the end of the episode, int64.
        time_left_Q: Fraction of the episode that is left before each decision, float32.
        decisions: Rewards and discounts of each episode.
        num_steps: Number of simulated steps.
        num_succeeded: Number of successful episodes.
    """

    inputs_QI: Tensor
    actions_QEA: Tensor
    num_executed_Q: Tensor
    time_left_Q: Tensor
    decisions: list[Decisions]
    num_steps: int
    num_succeeded: int


def gather_experience(episodes: Sequence[Episode], *, gamma: float, horizon: int) -> Experience:
    """Combine the choices and the outcomes of an exploring agent's episodes; crashed episodes are left out.

    ``horizon`` is the number of steps after which the episodes ended.
    """
    inputs: list[Tensor] = []
    actions: list[Tensor] = []
    time_left: list[np.ndarray] = []
    decisions: list[Decisions] = []
    num_steps = 0
    for episode in episodes:
        if episode.crash is not None:
            continue
        num_steps += len(episode)
        of_episode = make_decisions(episode.query_steps, len(episode), episode.success_step, gamma=gamma)
        decisions.append(of_episode)
        inputs.append(episode.notes.inputs_QI)
        actions.append(episode.notes.actions_QEA)
        time_left.append(1 - episode.query_steps / horizon)
    num_executed = np.concatenate([each.num_executed for each in decisions])
    return Experience(
        inputs_QI=torch.cat(inputs),
        actions_QEA=torch.cat(actions),
        num_executed_Q=torch.from_numpy(num_executed),
        time_left_Q=torch.from_numpy(np.concatenate(time_left).astype(np.float32)),
        decisions=decisions,
        num_steps=num_steps,
        num_succeeded=sum(episode.success_once for episode in episodes),
    )
