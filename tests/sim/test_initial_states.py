"""Initial states: reproducible, valid, and independent between streams."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.errors import ConfigError, InitialStateError
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, distinct, stack
from act_kit.sim.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["uniform", "sobol", "grid"])
def test_distributions_are_valid_reproducible_and_in_the_box(name: str, kind: str) -> None:
    task, distribution = TASKS[name], InitialStateDistribution(name, kind)
    init_states = distribution.sample(30, seed=3, stream="collect")
    assert init_states == distribution.sample(30, seed=3, stream="collect")
    vectors = stack(init_states)
    assert (vectors >= task.low).all()
    assert (vectors <= task.high).all()
    assert not any(task.is_resampled(vector) for vector in vectors)
    assert len(distinct(vectors)) == 30


def test_a_smaller_sample_is_a_prefix_and_streams_share_no_initial_states() -> None:
    distribution = InitialStateDistribution("pick-place-v3")
    init_states = distribution.sample(50, seed=0, stream="collect")
    assert distribution.sample(20, seed=0, stream="collect") == init_states[:20]
    samples = [
        *init_states,
        *distribution.sample(50, seed=0, stream="evaluate"),
        *distribution.sample(50, seed=1, stream="collect"),
    ]
    assert len(set(samples)) == 150


@pytest.mark.parametrize("name", TASKS)
def test_ood_initial_states_are_outside_the_box_within_the_margin_and_not_below(name: str) -> None:
    task = TASKS[name]
    vectors = stack(InitialStateDistribution(name, "ood").sample(30, seed=3, stream="evaluate"))
    outside = np.maximum(task.low - vectors, vectors - task.high)
    assert (outside.max(axis=1) > 0).all()
    assert (outside <= 0.25 * task.width).all()
    assert (np.delete(outside, task.informative, axis=1) <= 0).all()
    assert (vectors[:, 2::3] >= task.low[2::3]).all()
    assert not any(task.is_resampled(vector) for vector in vectors)


def test_uniform_is_the_benchmarks_reset_distribution() -> None:
    """Meta-World's own samples, from NumPy's global generator, have the same distribution."""
    from scipy.stats import ks_2samp

    from act_kit.sim.engine import make_environment

    env = make_environment("pick-place-v3")
    env._freeze_rand_vec = False
    state = np.random.get_state()
    np.random.seed(0)
    metaworld_vectors = []
    for _ in range(150):
        env.reset_model()
        metaworld_vectors.append(env._last_rand_vec)
    np.random.set_state(state)
    vectors = stack(InitialStateDistribution("pick-place-v3").sample(3000, seed=0, stream="reference"))
    for dim in TASKS["pick-place-v3"].informative:
        assert ks_2samp(np.array(metaworld_vectors)[:, dim], vectors[:, dim]).pvalue > 1e-4


def test_grid_is_a_lattice() -> None:
    vectors = stack(InitialStateDistribution("drawer-open-v3", "grid").sample(10, seed=0, stream="evaluate"))
    assert np.allclose(np.diff(np.sort(vectors[:, 0])), 0.02)
    vectors = stack(InitialStateDistribution("push-v3", "grid").sample(25, seed=0, stream="evaluate"))
    assert len(np.unique(vectors[:, 0].round(9))) == len(np.unique(vectors[:, 1].round(9))) == 5


def test_mt1_is_metaworlds_fifty_goals() -> None:
    import pickle

    import metaworld

    init_states = InitialStateDistribution("reach-v3", "mt1").sample(60, seed=7, stream="collect")
    goals = [pickle.loads(task.data)["rand_vec"] for task in metaworld.MT1("reach-v3", seed=7).train_tasks]
    assert [init_state.rand_vec for init_state in init_states[:50]] == [tuple(goal) for goal in goals]
    assert init_states[50:] == init_states[:10]


def test_errors_name_an_unknown_kind_and_another_task() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        InitialStateDistribution("reach-v3", "unifrom")
    with pytest.raises(InitialStateError, match="is of push-v3: expected an initial state of reach-v3"):
        InitialState("push-v3", (0.0,) * 6).check_is_of("reach-v3")


def test_distinct_uses_an_absolute_tolerance() -> None:
    rows = np.full((5, 3), 0.1) + np.random.default_rng(0).uniform(0, 1e-9, (5, 3))
    assert rows.std() > 0
    assert len(distinct(rows)) == 1
