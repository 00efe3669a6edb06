"""Comparison of the task table with Meta-World."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3, MT10_V3

from act_kit.errors import InitialStateError, TaskError
from act_kit.sim.engine import make_environment
from act_kit.sim.tasks import MT10, TASKS, expand_tasks, get_task


def test_names_groups_and_benchmarks_agree_with_metaworld() -> None:
    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert Counter(task.group for task in TASKS.values()) == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert set(MT10) == set(MT10_V3)
    assert {name for name, task in TASKS.items() if "ML45-test" in task.benchmarks} == set(ML45_V3["test"])


def test_the_error_for_an_unknown_task_suggests_the_most_similar_name() -> None:
    with pytest.raises(TaskError, match=r"'pick-plce-v3' is not a Meta-World task. Did you mean 'pick-place-v3'"):
        get_task("pick-plce-v3")


@pytest.mark.parametrize("name", TASKS)
def test_reset_box_and_rejection_agree_with_metaworld(name: str) -> None:
    """Count the vectors that Meta-World's reset samples: just below the threshold it must reject the first one."""
    task, env = TASKS[name], make_environment(name)
    assert tuple(env._random_reset_space.low) == task.low
    assert tuple(env._random_reset_space.high) == task.high

    def num_samples(*vectors: np.ndarray) -> int:
        queue = list(vectors)
        env._get_state_rand_vec = lambda: queue.pop(0)
        env.reset_model()
        return len(vectors) - len(queue)

    valid = np.array(task.low)
    if not task.min_object_goal_distance:
        goal_on_object = np.resize(valid[:3], len(valid))
        assert not task.is_resampled(goal_on_object)
        if name != "bin-picking-v3":  # its goal is a constant
            assert num_samples(goal_on_object) == 1
        return
    while task.is_resampled(valid):
        valid = np.random.default_rng(0).uniform(task.low, task.high)
    goal_xy = valid[3:5] if task.goal_xy is None else np.array(task.goal_xy)
    near, far = valid.copy(), valid.copy()
    near[:2] = goal_xy + np.array([0, task.min_object_goal_distance - 1e-6])
    far[:2] = goal_xy + np.array([0, task.min_object_goal_distance + 1e-6])
    assert task.is_resampled(near)
    assert not task.is_resampled(far)
    assert num_samples(near, valid) == 2
    assert num_samples(far, valid) == 1
    with pytest.raises(InitialStateError, match="resample forever"):
        task.check(near)


def test_expand_tasks_accepts_tasks_and_benchmarks() -> None:
    assert expand_tasks("push-v3,reach-v3,push-v3") == ["push-v3", "reach-v3"]
    assert set(expand_tasks("MT10")) == MT10
    assert len(expand_tasks("MT50")) == 50
    with pytest.raises(TaskError, match="Did you mean 'MT10'"):
        expand_tasks("reach-v3,MT1")
