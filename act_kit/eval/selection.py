"""Rollouts that select a checkpoint during training.

They use their own initial states, because those that select a checkpoint must not be those that evaluate it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.eval.results import rates_by_task, success_rate
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.training.trainer import CheckpointEvaluator, SelectionResult


def make_checkpoint_evaluator(roll: RolloutFunction, init_states: Sequence[InitialState]) -> CheckpointEvaluator:
    """Return a function that rolls a policy out from ``init_states``, up to the first success or the horizon."""

    def evaluate_checkpoint(policy: Policy) -> SelectionResult:
        outcomes = roll(PolicyAgent(policy), init_states, stop_at_success=True)
        rate = success_rate(outcomes)
        low, high = rate.interval
        final_distances = [outcome.distances[-1] for outcome in outcomes]
        rates = rates_by_task(outcomes)
        by_task: dict[str, float] = {}
        for task, rate_of_task in rates.items() if len(rates) > 1 else ():
            by_task[task] = rate_of_task.value
        return SelectionResult(
            successes=rate.successes,
            num=rate.num,
            low=low,
            high=high,
            final_distance=float(np.mean(final_distances)),
            by_task=by_task,
        )

    return evaluate_checkpoint
