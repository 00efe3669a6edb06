"""Rollouts that select a checkpoint during training.

They use their own initial states, because those that select a checkpoint must not be those that evaluate it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.eval.results import success_rate
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.training.trainer import CheckpointEvaluator, SelectionResult


def make_checkpoint_evaluator(roll: RolloutFunction, init_states: Sequence[InitialState]) -> CheckpointEvaluator:
    """Return a function that rolls a policy out from ``init_states``, up to the first success or the horizon."""
    tasks = dict.fromkeys(init_state.task for init_state in init_states)

    def evaluate_checkpoint(policy: Policy) -> SelectionResult:
        outcomes = roll(PolicyAgent(policy), init_states, stop_at_success=True)
        rate = success_rate(outcomes)
        low, high = rate.interval
        final_distance = float(np.mean([outcome.distances[-1] for outcome in outcomes]))
        by_task: dict[str, float] = {}
        for task in tasks if len(tasks) > 1 else ():
            of_task = [outcome for outcome in outcomes if outcome.init_state.task == task]
            by_task[task] = success_rate(of_task).value
        return SelectionResult(
            successes=rate.successes,
            num=rate.num,
            low=low,
            high=high,
            final_distance=final_distance,
            by_task=by_task,
        )

    return evaluate_checkpoint
