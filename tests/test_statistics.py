"""Statistics: those that others have equal theirs, and intervals cover what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import boschloo_exact, fisher_exact
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import confint_proportions_2indep

from act_kit.statistics import (
    Rate,
    compare_pairs,
    compare_rates,
    compare_seeds,
    detectable_paired,
    detectable_t,
    detectable_unpaired,
    holm,
    mcnemar,
    newcombe_interval,
    paired_bootstrap,
    seeds_mean,
    two_kinds,
)


def test_two_rates_are_compared_as_others_do() -> None:
    rng = np.random.default_rng(0)
    for num_a, num_b in rng.integers(2, 60, (20, 2)):
        a, b = (Rate(int(rng.integers(0, num + 1)), int(num)) for num in (num_a, num_b))
        found = compare_rates(a, b, level=0.05)
        theirs = confint_proportions_2indep(b.successes, b.num, a.successes, a.num, method="newcomb", compare="diff")
        assert (found.low, found.high) == pytest.approx(theirs, abs=1e-9)
        table = [[a.successes, b.successes], [a.num - a.successes, b.num - b.successes]]
        assert found.p == pytest.approx(min(boschloo_exact(table).pvalue, 1), abs=1e-9)
        assert found.value == pytest.approx(b.value - a.value)


def test_very_many_episodes_are_compared_by_fishers_test() -> None:
    found = compare_rates(Rate(900, 1000), Rate(930, 1000), level=0.05)
    assert found.test == "Fisher's exact test"
    assert found.p == pytest.approx(fisher_exact([[900, 930], [100, 70]]).pvalue, abs=1e-9)


def test_mcnemar_and_holm_are_as_others_have_them() -> None:
    rng = np.random.default_rng(0)
    for lost, won in rng.integers(0, 30, (50, 2)):
        theirs = their_mcnemar([[5, lost], [won, 5]], exact=True).pvalue if lost + won else 1.0
        assert mcnemar(int(lost), int(won)) == pytest.approx(theirs, abs=1e-9)
    for _ in range(10):
        p_values = rng.random(7) ** 3
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-9)


def test_a_pair_is_compared_on_the_starts_that_differ() -> None:
    a, b = np.arange(100) < 80, (np.arange(100) < 90) & (np.arange(100) > 1)
    found = compare_pairs(a, b, level=0.05)
    assert found.value == pytest.approx(0.08)
    assert found.p == mcnemar(2, 10)
    assert found.low < 0.08 < found.high
    agreed = compare_pairs(a, a, level=0.05)
    assert agreed.low < 0 < agreed.high, "a hundred starts on which both agree are no proof that they always do"


def test_intervals_of_two_checkpoints_cover() -> None:
    rng = np.random.default_rng(0)
    for num, p_a, p_b in ((30, 0.9, 0.95), (100, 0.5, 0.8)):
        truth = p_b - p_a
        drawn = rng.binomial(num, (p_a, p_b), (400, 2))
        unpaired = [newcombe_interval(Rate(int(x), num), Rate(int(y), num)) for x, y in drawn]
        assert _coverage(unpaired, truth) > 0.93
    for num, lost, won in ((30, 0.0, 0.05), (30, 0.1, 0.2), (100, 0.02, 0.02), (100, 0.1, 0.5)):
        drawn = rng.multinomial(num, (lost, won, 1 - lost - won), 250)
        assert _coverage([paired_bootstrap(int(x), int(y), num) for x, y, _ in drawn], won - lost) > 0.93


def test_what_is_called_detectable_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    difference = detectable_paired(3, 100, level=0.05)
    drawn = rng.multinomial(100, (0.03, 0.03 + difference, 0.94 - difference), 2000)
    assert np.mean([mcnemar(int(lost), int(won)) < 0.05 for lost, won, _ in drawn]) == pytest.approx(0.8, abs=0.04)
    difference = detectable_unpaired(0.5, 40, 40, level=0.05)
    drawn = rng.binomial(40, (0.5, 0.5 - difference), (150, 2))
    p_values = [compare_rates(Rate(int(x), 40), Rate(int(y), 40), level=0.05).p for x, y in drawn]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.8, abs=0.1)
    for num in (3, 5, 20):
        theirs = TTestIndPower().solve_power(nobs1=num, alpha=0.05, power=0.8)
        assert detectable_t((2 / num) ** 0.5, 2 * num - 2, level=0.05) == pytest.approx(theirs, rel=1e-5)
    assert detectable_paired(0, 5, level=0.05) == 1, "five starts show nothing"
    assert detectable_paired(3, 100, level=0.01) > detectable_paired(3, 100, level=0.05)


def _simulate(rng: np.random.Generator, num_seeds: int, logit: float, of_start: np.ndarray) -> np.ndarray:
    """Draw successes (K, N) of seeds that differ, from starts that are not equally hard."""
    logits = logit + rng.normal(0, 0.5, (num_seeds, 1)) + of_start
    return rng.random(logits.shape) < 1 / (1 + np.exp(-logits))


def _two_level_bootstrap(rng: np.random.Generator, successes: np.ndarray) -> tuple[float, float]:
    num_seeds, num = successes.shape
    rates = successes.mean(axis=1)[rng.integers(0, num_seeds, (400, num_seeds))]
    low, high = np.quantile(rng.binomial(num, rates).mean(axis=1) / num, (0.025, 0.975))
    return low, high


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_of_few_seeds_cover_where_a_bootstrap_over_seeds_does_not(num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    of_law = rng.normal(0, 1.5, 400_000)
    truth = float((1 / (1 + np.exp(-(2 + of_law + rng.normal(0, 0.5, len(of_law)))))).mean())
    ours, bootstraps, differences, p_values = [], [], [], []
    for _ in range(500):
        of_start = rng.choice(of_law, 100)
        a, b = (_simulate(rng, num_seeds, 2, of_start) for _ in range(2))
        mean = seeds_mean([a])
        ours.append((mean.low, mean.high))
        bootstraps.append(_two_level_bootstrap(rng, a))
        found = compare_seeds([a], [b], same_starts=True, level=0.05)
        differences.append((found.low, found.high))
        p_values.append(found.p)
    assert _coverage(ours, truth) > 0.93
    assert _coverage(bootstraps, truth) < 0.91
    assert _coverage(differences, 0) > 0.93
    assert np.mean(np.array(p_values) < 0.05) < 0.07


def test_episodes_are_not_pooled_over_seeds() -> None:
    wild = np.stack([np.arange(100) < n for n in (90, 88, 2, 85, 5)])
    mean = seeds_mean([wild])
    assert mean.value == pytest.approx(0.54)
    assert mean.low < 0.2
    assert mean.high > 0.88
    assert two_kinds([0.9, 0.88, 0.02, 0.85, 0.05]) == ([0.02, 0.05], [0.85, 0.88, 0.9])
    assert two_kinds([0.9, 0.8, 0.7, 0.5]) is None
    assert two_kinds([0.9, 0.1]) is None


def test_seeds_that_all_succeed_are_no_certainty() -> None:
    all_of_them, none = np.ones((3, 100), bool), np.zeros((3, 100), bool)
    mean = seeds_mean([all_of_them])
    assert mean.value == mean.high == 1
    assert 0.9 < mean.low < 0.99
    found = compare_seeds([none], [all_of_them], same_starts=True, level=0.05)
    assert (found.value, found.high) == (1, 1)
    assert found.p < 0.001


def test_the_mean_over_tasks_counts_every_task_the_same() -> None:
    rng = np.random.default_rng(0)
    easy, hard = rng.random((3, 50)) < 0.9, rng.random((3, 10)) < 0.2
    assert seeds_mean([easy, hard]).value == pytest.approx((easy.mean() + hard.mean()) / 2)
    found = compare_seeds([easy, hard], [easy, ~hard], same_starts=False, level=0.05)
    assert found.value == pytest.approx((1 - 2 * hard.mean()) / 2)


def _coverage(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals]))
