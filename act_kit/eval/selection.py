"""Rollouts during training, on starts of their own: what chooses a checkpoint must not be what reports on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.eval.actors import PolicyActor
from act_kit.eval.evaluate import distance_at, success_rate
from act_kit.eval.rollout import Roll
from act_kit.policy.policy import Policy
from act_kit.sim.starts import Start
from act_kit.training.trainer import Selector, Trial


def make_selector(roll: Roll, starts: Sequence[Start]) -> Selector:
    """Return what rolls a policy out from ``starts``, each episode to its first success or the horizon."""
    tasks = dict.fromkeys(start.task for start in starts)

    def select(policy: Policy) -> Trial:
        outcomes = roll(PolicyActor(policy), starts, stop_at_success=True)
        rate = success_rate(outcomes)
        low, high = rate.interval
        final_distance = float(np.mean([distance_at(outcome, "final") for outcome in outcomes]))
        by_task = {
            task: success_rate([outcome for outcome in outcomes if outcome.start.task == task]).value for task in tasks
        }
        return Trial(
            successes=rate.successes, num=rate.num, low=low, high=high, final_distance=final_distance,
            by_task=by_task if len(tasks) > 1 else {},
        )  # fmt: skip

    return select
