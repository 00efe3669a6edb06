"""Tests of stages and failure modes: the expert reaches every stage of every task, a zero-action policy none."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from act_kit.eval.failure_modes import FAILURE_MODES, failure_mode
from act_kit.eval.stages import (
    GRASPING,
    MEANINGS,
    REACHING,
    furthest_stage,
    held,
    moved,
    near,
    reached_stages,
    stage_counts,
    stages,
)
from act_kit.rollouts.agents import ExpertAgent, ZeroActionAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS
from act_kit.sim.vector import VectorSimulator

NEAR_INITIALLY = {"drawer-close-v3", "handle-press-v3"}
"""Tasks in which the hand is near the object in the initial state."""


def run(task: str, num: int = 1, *, expert: bool = True) -> list[Episode]:
    init_states = InitialStateDistribution(task).sample(num, seed=0, stream="evaluate")
    with VectorSimulator(0) as simulators:
        return rollout(
            simulators,
            ExpertAgent() if expert else ZeroActionAgent(),
            init_states,
            steps_after_success=0 if expert else None,
        )


@pytest.mark.parametrize("task", TASKS)
def test_expert_reaches_every_stage_and_zero_actions_none(task: str) -> None:
    (outcome,), (idle,) = run(task), run(task, expert=False)
    assert outcome.success_once
    assert reached_stages(outcome) == dict.fromkeys(stages(task), True), (
        "each by its own criterion, not implied by success"
    )
    assert reached_stages(idle) == dict.fromkeys(stages(task), False) | {"near": task in NEAR_INITIALLY}
    assert failure_mode(idle) == "frozen"


def test_tasks_have_the_stages_of_their_family() -> None:
    assert stages("reach-v3") == ("near", "success")
    assert stages("pick-place-v3") == ("near", "grasped", "half way", "success")
    assert stages("door-open-v3") == ("near", "moved", "half way", "success")
    assert set(TASKS) >= GRASPING | REACHING
    assert set(chain.from_iterable(map(stages, TASKS))) == set(MEANINGS)


def with_path(outcome: Episode, path: np.ndarray) -> Episode:
    """Return an episode with another path, (T + 1, 7)."""
    states = np.zeros((len(path), 39))
    states[:, :7] = path
    return replace(outcome, state=states[:-1], last_state=states[-1])


def cut(outcome: Episode, num_steps: int) -> Episode:
    """Return the first steps of an episode, without success."""
    first_steps = replace(
        outcome,
        success=np.zeros(num_steps, bool),
        distance=outcome.distance[:num_steps],
        executed_action=outcome.executed_action[:num_steps],
    )
    return with_path(first_steps, outcome.path[: num_steps + 1])


def test_stage_counts_decrease_and_success_implies_all_stages() -> None:
    (expert,) = run("pick-place-v3")
    outcomes = [cut(expert, num_steps) for num_steps in range(1, len(expert))] + [expert]
    counts = list(stage_counts("pick-place-v3", map(furthest_stage, outcomes)).values())
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 4
    lucky = with_path(expert, np.zeros_like(expert.path) + np.arange(7, dtype=np.float32))
    assert not reached_stages(lucky)["near"], "the hand is never near"
    assert furthest_stage(lucky) == "success"
    assert set(stage_counts("pick-place-v3", [furthest_stage(lucky)]).values()) == {1}
    assert furthest_stage(cut(expert, 0)) is None


def test_path_is_hand_gripper_and_object_of_every_step() -> None:
    (outcome,) = run("push-v3")
    simulator = Simulator("push-v3")
    first = simulator.reset(outcome.init_state)
    states = simulator.step_chunk(outcome.executed_action).state
    assert np.array_equal(outcome.path, np.concatenate([first[None], states])[:, :7].astype(np.float32))


def hand_moving(outcome: Episode, hand: np.ndarray) -> Episode:
    """Return a failed episode with this path of the hand (T + 1, 3) and a distant object."""
    num = len(hand) - 1
    path = np.concatenate([hand, np.zeros((num + 1, 1)), np.full((num + 1, 3), 9.0)], axis=1).astype(np.float32)
    failed = replace(
        outcome,
        success=np.zeros(num, bool),
        initial_distance=1.0,
        distance=np.ones(num),
        executed_action=np.zeros((num, 4), np.float32),
    )
    return with_path(failed, path)


def test_failure_modes_follow_from_the_motion() -> None:
    (expert,) = run("pick-place-v3")
    assert failure_mode(expert) is None
    t = np.arange(501)[:, None] * np.ones(3)
    assert failure_mode(hand_moving(expert, 0.0001 * np.sin(t))) == "frozen"
    assert failure_mode(hand_moving(expert, 0.03 * np.sin(t / 5))) == "oscillating"
    assert failure_mode(hand_moving(expert, np.minimum(t, 60) * 0.005)) == "never reached", (
        "the hand stops away from the object"
    )
    assert failure_mode(replace(hand_moving(expert, 0 * t), crash="unstable")) == "crashed"
    walk = np.random.default_rng(0).uniform(-0.01, 0.01, (501, 3)).cumsum(axis=0)
    assert failure_mode(hand_moving(expert, walk)) == "never reached", "a random walk does not oscillate"
    slow = np.zeros((len(expert), 4), np.float32)
    carrying = held(expert).nonzero()[0]
    lifted = replace(cut(expert, int(carrying[0]) + 12), executed_action=slow[: carrying[0] + 12])
    assert furthest_stage(lifted) in ("grasped", "half way")
    assert failure_mode(lifted) == "other", "held until the end"
    dropped = lifted.path.copy()
    dropped[-1, 6] = dropped[1, 6]
    assert failure_mode(with_path(lifted, dropped)) == "lost the grasp"
    fast = np.ones((len(lifted), 4), np.float32)
    assert failure_mode(replace(lifted, executed_action=fast)) == "saturated"
    only_gripper = fast * [0, 0, 0, 1]
    assert failure_mode(replace(lifted, executed_action=only_gripper)) == "other", "the gripper does not count"
    assert failure_mode(cut(expert, int(carrying[0]))) == "never grasped", "the hand is near, and lifts nothing"
    assert list(FAILURE_MODES)[-1] == "other"


def test_failure_modes_of_objects_that_are_pushed() -> None:
    (expert,) = run("push-v3")
    assert failure_mode(cut(expert, int(moved(expert).nonzero()[0][0]))) == "never moved"
    pushed = cut(expert, int(moved(expert).nonzero()[0][0]) + 2)
    still = replace(pushed, executed_action=np.zeros_like(pushed.executed_action))
    assert failure_mode(still) == "other", "the hand is at the object that it moved"
    rolled = still.path.copy()
    rolled[-1, 4:6] += 0.2
    assert failure_mode(with_path(still, rolled)) == "lost the object"
    (reached,) = run("reach-v3")
    near_goal = cut(reached, int(near(reached).nonzero()[0][0]) + 1)
    assert failure_mode(near_goal) in ("saturated", "other"), "there is no object to move"
