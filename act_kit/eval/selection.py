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

    def select(policy: Policy) -> Trial:
        outcomes = roll(PolicyActor(policy), starts, stop_at_success=True)
        rate = success_rate(outcomes)
        low, high = rate.interval
        final_distance = float(np.mean([distance_at(outcome, "final") for outcome in outcomes]))
        return Trial(successes=rate.successes, num=rate.num, low=low, high=high, final_distance=final_distance)

    return select
