"""The task table against Meta-World itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3, MT10_V3

from act_kit.errors import InitialStateError, TaskError
from act_kit.sim.engine import make_environment
from act_kit.sim.tasks import MT10, TASKS, expand_tasks, get_task


def test_names_groups_and_benchmarks() -> None:
    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert Counter(task.group for task in TASKS.values()) == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert set(MT10) == set(MT10_V3)
    assert {name for name, task in TASKS.items() if "ML45-test" in task.benchmarks} == set(ML45_V3["test"])


def test_unknown_task_is_named_with_the_closest() -> None:
    with pytest.raises(TaskError, match=r"'pick-plce-v3' is not a Meta-World task. Did you mean 'pick-place-v3'"):
        get_task("pick-plce-v3")


@pytest.mark.parametrize("name", TASKS)
def test_reset_box_and_rejection_are_metaworlds(name: str) -> None:
    """Feed Meta-World's reset a vector and see whether it asks for another: just below the threshold it must."""
    task, env = TASKS[name], make_environment(name)
    assert tuple(env._random_reset_space.low) == task.low
    assert tuple(env._random_reset_space.high) == task.high

    def draws(*vectors: np.ndarray) -> int:
        queue = list(vectors)
        env._get_state_rand_vec = lambda: queue.pop(0)
        env.reset_model()
        return len(vectors) - len(queue)

    legal = np.array(task.low)
    if not task.too_near:
        goal_on_object = np.resize(legal[:3], len(legal))
        assert not task.rejects(goal_on_object)
        if name != "bin-picking-v3":  # its goal is a constant
            assert draws(goal_on_object) == 1
        return
    while task.rejects(legal):
        legal = np.random.default_rng(0).uniform(task.low, task.high)
    goal_xy = legal[3:5] if task.goal_xy is None else np.array(task.goal_xy)
    near, far = legal.copy(), legal.copy()
    near[:2] = goal_xy + np.array([0, task.too_near - 1e-6])
    far[:2] = goal_xy + np.array([0, task.too_near + 1e-6])
    assert task.rejects(near)
    assert not task.rejects(far)
    assert draws(near, legal) == 2
    assert draws(far, legal) == 1
    with pytest.raises(InitialStateError, match="redraw it for ever"):
        task.check(near)


def test_tasks_are_named_one_by_one_or_by_benchmark() -> None:
    assert expand_tasks("push-v3,reach-v3,push-v3") == ["push-v3", "reach-v3"]
    assert set(expand_tasks("MT10")) == MT10
    assert len(expand_tasks("MT50")) == 50
    with pytest.raises(TaskError, match="Did you mean 'MT10'"):
        expand_tasks("reach-v3,MT1")
