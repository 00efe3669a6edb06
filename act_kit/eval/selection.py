"""Rollouts during training, on starts of their own: what chooses a checkpoint must not be what reports on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.eval.evaluate import distance_at, success_rate
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import PolicyAgent
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.training.trainer import CheckpointEvaluator, SelectionResult


def make_checkpoint_evaluator(roll: RolloutFunction, init_states: Sequence[InitialState]) -> CheckpointEvaluator:
    """Return what rolls a policy out from ``init_states``, each episode to its first success or the horizon."""
    tasks = dict.fromkeys(init_state.task for init_state in init_states)

    def select(policy: Policy) -> SelectionResult:
        outcomes = roll(PolicyAgent(policy), init_states, stop_at_success=True)
        rate = success_rate(outcomes)
        low, high = rate.interval
        final_distance = float(np.mean([distance_at(outcome, "final") for outcome in outcomes]))
        by_task = {
            task: success_rate([outcome for outcome in outcomes if outcome.init_state.task == task]).value
            for task in tasks
        }
        return SelectionResult(
            successes=rate.successes, num=rate.num, low=low, high=high, final_distance=final_distance,
            by_task=by_task if len(tasks) > 1 else {},
        )  # fmt: skip

    return select
