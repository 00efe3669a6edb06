"""Returns and advantages over chunks of actions.

A chunk is one decision. Its reward is the success inside it, discounted by the steps from its start, and the value
after it is discounted by the number of its executed steps. Success and the time limit are true ends: nothing follows
either, because the value sees the time that is left.

Shapes: Q queries of one episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The decisions of one episode.

    Attributes:
        rewards: Discounted reward inside each chunk, float64 (Q,).
        discounts: Discount of the value after each chunk, float64 (Q,); 0 after the last.
        num_executed: Number of executed actions of each chunk that could matter, int64 (Q,): up to the success.
    """

    rewards: np.ndarray
    discounts: np.ndarray
    num_executed: np.ndarray


def make_decisions(query_steps: np.ndarray, num_steps: int, success_step: int | None, *, gamma: float) -> Decisions:
    """Return the decisions of an episode that ended by success, or at the time limit.

    Args:
        query_steps: First step of each chunk, int64 (Q,), ascending from 0.
        num_steps: Number of executed steps.
        success_step: First successful step, or None. The reward of that step is 1, of all others 0.
        gamma: Discount of a step.
    """
    end = num_steps if success_step is None else success_step + 1
    lengths = np.diff(np.append(query_steps, end))
    discounts = gamma ** lengths.astype(np.float64)
    discounts[-1] = 0.0
    rewards = np.zeros(len(query_steps))
    if success_step is not None:
        rewards[-1] = gamma ** float(success_step - query_steps[-1])
    return Decisions(rewards=rewards, discounts=discounts, num_executed=lengths)


def estimate_advantages(decisions: Decisions, values: np.ndarray, *, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Return generalized advantage estimates and the returns that values are fitted to, float64 (Q,) each.

    Args:
        decisions: Decisions of one episode.
        values: Estimated value before each chunk, (Q,).
        lam: Weight of the estimates over more chunks (Schulman et al. 2016, arXiv:1506.02438).
    """
    advantages = np.zeros(len(values))
    following_value = following_advantage = 0.0
    for query in reversed(range(len(values))):
        discount = decisions.discounts[query]
        error = decisions.rewards[query] + discount * following_value - values[query]
        advantages[query] = error + discount * lam * following_advantage
        following_value, following_advantage = float(values[query]), advantages[query]
    return advantages, advantages + values
