"""Rollouts: an outcome belongs to its start and its actor, to nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.eval.actors import ExpertActor, NothingActor, PolicyActor, RandomActor
from act_kit.eval.rollout import Outcome, rollout
from act_kit.policy.policy import Policy
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import StartLaw
from act_kit.sim.vector import VectorSimulator

STARTS = StartLaw("reach-v3").sample(5, seed=0, stream="evaluate")


def same(a: list[Outcome], b: list[Outcome]) -> bool:
    return all(
        x.start == y.start and np.array_equal(x.actions, y.actions) and np.array_equal(x.distance, y.distance)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("ensemble", [False, True])
def test_neither_processes_nor_batch_change_an_outcome(tiny_policy: Policy, ensemble: bool) -> None:
    policy = tiny_policy.with_execution(ensemble=ensemble)
    results = []
    for num_rows, num_workers in ((5, 1), (2, 1), (4, 2)):
        with VectorSimulator("reach-v3", num_workers) as simulators:
            results.append(rollout(simulators, PolicyActor(policy), STARTS, num_rows=num_rows))
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert [outcome.start for outcome in results[0]] == STARTS


def test_it_is_the_policy_stepping_one_simulator(tiny_policy: Policy) -> None:
    with VectorSimulator("reach-v3", 1) as simulators:
        outcome = rollout(simulators, PolicyActor(tiny_policy), STARTS)[1]
    simulator = Simulator("reach-v3")
    state = simulator.reset(STARTS[1])
    tiny_policy.reset()
    for t in range(40):
        action = tiny_policy.act(state)
        assert np.array_equal(action, outcome.actions[t])
        segment = simulator.step_chunk(action[None])
        state = segment.state[-1]
        assert segment.distance[-1] == outcome.distance[t + 1]
    assert outcome.query_steps[:4].tolist() == [0, 4, 8, 12]


def test_episodes_run_to_the_horizon_or_to_the_first_success() -> None:
    with VectorSimulator("reach-v3", 1) as simulators:
        full = rollout(simulators, ExpertActor("reach-v3"), STARTS[:3])
        short = rollout(simulators, ExpertActor("reach-v3"), STARTS[:3], stop_at_success=True)
    for a, b in zip(full, short, strict=True):
        assert len(a) == 500
        assert len(a.distance) == 501
        assert a.success_step == b.success_step == len(b) - 1
        assert b.success_at_end


def test_controls_do_what_they_say_and_random_belongs_to_the_start() -> None:
    with VectorSimulator("reach-v3", 1) as simulators:
        nothing = rollout(simulators, NothingActor(), STARTS[:1])[0]
        one = rollout(simulators, RandomActor(), STARTS[:3])
        other = rollout(simulators, RandomActor(), STARTS[2:3])
    assert not nothing.actions.any()
    assert same(one[2:], other)
    assert not np.array_equal(one[0].actions, one[1].actions)
    assert 0.4 < np.abs(one[0].actions).mean() < 0.6


def test_clipped_numbers_are_counted() -> None:
    class Wild(NothingActor):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return np.tile(np.array([3.0, 0.5, -2.0, 0.0], dtype=np.float32), (len(states), 16, 1))

    with VectorSimulator("reach-v3", 1) as simulators:
        outcome = rollout(simulators, Wild(), STARTS[:1])[0]
    assert outcome.clip_fraction == 0.5
    assert np.abs(outcome.actions).max() == 1


def test_a_crashed_episode_has_failed_and_is_named() -> None:
    class Broken(ExpertActor):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            planned = super().plan(states, rows, images)
            self.calls = getattr(self, "calls", 0) + 1
            return planned[:, :, :2] if self.calls > 70 else planned

    with VectorSimulator("reach-v3", 1) as simulators:
        outcome = rollout(simulators, Broken("reach-v3"), STARTS[:1])[0]
    assert outcome.success.any(), "it had succeeded before: the test would show nothing"
    assert outcome.crash is not None
    assert not outcome.success_once
    assert outcome.success_step is None
