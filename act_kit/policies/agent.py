"""A trained policy as an agent of rollouts."""

from __future__ import annotations

import numpy as np

from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.sim.initial_states import InitialState


class PolicyAgent(Agent):
    """Agent that runs a trained policy.

    It shares the weights with the policy, but has its own action chunks, so simultaneous evaluations are independent.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.with_chunking()
        self.views = policy.views
        self._tasks: dict[int, int] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Forget the environment's last episode."""
        self.policy.begin_episodes(np.array([row]))
        self._tasks[row] = self.policy.tasks.index(init_state.task)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Predict action chunks (B, N, 4)."""
        tasks = np.array([self._tasks[int(row)] for row in rows])
        return self.policy.plan_unclipped(states, rows, images, tasks)
