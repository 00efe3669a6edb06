"""Multi-task policies on Meta-World's own multi-task environments: each row acts on its own task."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import metaworld
import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from act_kit.config.policy import ACTConfig
from act_kit.config.training import TrainConfig
from act_kit.errors import ArrayError
from act_kit.overrides import compose
from act_kit.policies.heads.act import ACT
from act_kit.policies.metadata import PolicyMetadata, TrainingDataset
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.sim.tasks import MT10, STATE_DIM, TASKS, benchmark_tasks
from tests.conftest import TINY


def policy_of(tasks: Sequence[str]) -> Policy:
    """Make an untrained policy for the given tasks."""
    config = compose(TrainConfig, [*TINY])
    metadata = PolicyMetadata(
        datasets=[TrainingDataset(task=task, fingerprint="", command="", init_states=[]) for task in tasks],
        horizon=500,
        control_hz=80,
        versions={},
        step=0,
        goal_visible=True,
        views=None,
        gl_renderer="",
    )
    torch.manual_seed(0)
    assert isinstance(config.policy, ACTConfig)
    return Policy(ACT(config.policy, num_tasks=len(tasks)), Normalizer(STATE_DIM), metadata, config.chunking)


@pytest.fixture(scope="module")
def mt10() -> Policy:
    """A policy whose tasks are in another order than the benchmark's."""
    return policy_of(sorted(MT10))


def one_hot(benchmark: str, *tasks: str) -> np.ndarray:
    """Return one observation per task, in the benchmark's format."""
    known = benchmark_tasks(benchmark)
    states = np.random.default_rng(0).uniform(0.1, 0.5, (len(tasks), STATE_DIM))
    return np.concatenate([states, np.eye(len(known))[[known.index(task) for task in tasks]]], axis=1)


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_each_row_of_metaworlds_vector_environment_acts_on_its_task(
    mt10: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metaworld, "_N_GOALS", 1)  # instead of 50, each of which resets an environment
    envs = gym.make_vec("Meta-World/MT10", vector_strategy="sync", seed=0, use_one_hot=True)
    observations, _ = envs.reset()
    names = {type(env.unwrapped): env.unwrapped for env in envs.envs}  # type: ignore[attr-defined]
    tasks = [task for kind in names for task, known in ALL_V3_ENVIRONMENTS.items() if known is kind]
    assert observations.shape == (10, 49)
    alone = [mt10.for_task(task) for task in tasks]
    mt10.reset(np.ones(10, dtype=bool))
    for _ in range(6):
        actions = mt10.eval_action(observations)
        for row, policy in enumerate(alone):
            assert np.array_equal(actions[row], policy.act(observations[row, :STATE_DIM]))
        observations, _, ended, _, _ = envs.step(actions)
        mt10.reset(ended)
    envs.close()


@pytest.mark.parametrize("benchmark", ["MT10", "MT25", "MT50"])
def test_one_hot_vectors_are_decoded_in_the_order_of_the_benchmark(benchmark: str) -> None:
    tasks = benchmark_tasks(benchmark)
    policy, observations = policy_of(sorted(TASKS)), one_hot(benchmark, *tasks)
    decoded = policy.predict(observations)
    assert np.array_equal(decoded, policy.predict(observations[:, :STATE_DIM], tasks=list(tasks)))
    for row, task in enumerate(tasks[:3]):
        assert np.array_equal(decoded[row], policy.for_task(task).predict(observations[row : row + 1, :STATE_DIM])[0])


def test_states_without_a_task_are_refused_by_a_multi_task_policy(mt10: Policy) -> None:
    states = one_hot("MT10", "push-v3", "reach-v3")[:, :STATE_DIM]
    mt10.reset()
    with pytest.raises(
        ArrayError, match=r"trained on 10 tasks .* tasks=\[…\].*use_one_hot=True.* every row is of that"
    ):
        mt10.act(states)
    by_name = mt10.predict(states, tasks=["push-v3", "reach-v3"])
    assert np.array_equal(mt10.predict(states, tasks=np.array([6, 7])), by_name)
    assert np.array_equal(mt10.act(states, tasks=["push-v3", "reach-v3"]), np.clip(by_name[:, 0], -1, 1))
    mt10.reset()
    assert np.array_equal(mt10.act(states[0], tasks="push-v3"), np.clip(by_name[0, 0], -1, 1))


def test_vectors_that_are_not_one_hot_are_refused_by_row(mt10: Policy) -> None:
    for wrong in (np.zeros(10), np.eye(10)[1] + np.eye(10)[2], np.eye(10)[1] * 2, np.full(10, 0.1), -np.eye(10)[0]):
        observations = one_hot("MT10", "push-v3", "reach-v3", "push-v3")
        observations[1, STATE_DIM:] = wrong
        with pytest.raises(ArrayError, match=r"last 10 numbers of row 1 are .* a one-hot vector of MT10"):
            mt10.predict(observations)


def test_a_task_that_the_policy_was_not_trained_on_is_refused_by_row(mt10: Policy) -> None:
    with pytest.raises(ArrayError, match="task in row 1 is assembly-v3: expected one that this policy was trained on"):
        mt10.predict(one_hot("MT50", "push-v3", "assembly-v3"))
    single = policy_of(["reach-v3"])
    assert single.predict(one_hot("MT10", "reach-v3")).shape == (1, 8, 4)
    with pytest.raises(ArrayError, match=r"task in row 0 is push-v3: expected .* on, reach-v3\."):
        single.act(one_hot("MT10", "push-v3", "reach-v3"))
    with pytest.raises(ArrayError, match="one-hot task in row 1 is reach-v3, but the policy is set to push-v3"):
        mt10.for_task("push-v3").predict(one_hot("MT10", "push-v3", "reach-v3"))


def test_an_unsupported_one_hot_vector_is_refused_with_a_fix() -> None:
    policy = policy_of(["reach-v3", "push-v3"])
    observations = np.concatenate([one_hot("MT10", "push-v3")[:, :STATE_DIM], [[0.0, 1.0]]], axis=1)
    with pytest.raises(ArrayError, match=r"\(B, 49\), \(B, 64\) or \(B, 89\) .* not \(1, 41\).*tasks=\[…\]"):
        policy.act(observations)
    for tasks in (["push"], ["push-v3"] * 2, [2], [-1], [0.0], [[0]], "push-v3"):
        with pytest.raises(ArrayError, match="task"):
            policy.predict(observations[:, :STATE_DIM], tasks=tasks)  # type: ignore[arg-type]
