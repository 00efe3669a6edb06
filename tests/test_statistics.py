"""Statistics equal those of SciPy and statsmodels, and intervals have their nominal coverage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, boschloo_exact, fisher_exact, multinomial, norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import proportion_confint

from act_kit.statistics import (
    AreaUnderCurve,
    Difference,
    GroupAverageRate,
    MacroAverageRate,
    Rate,
    compare_pairs,
    compare_rates,
    compare_seeds,
    conformal_threshold,
    detectable_paired,
    detectable_t,
    detectable_unpaired,
    fewest_conformal_scores,
    holm,
    holm_levels,
    largest_unseen_share,
    mcnemar,
    paired_interval,
    paired_score,
    percent,
    seeds_mean,
    seeds_to_bound,
    share_interval,
    split_bimodal,
    unpaired_score,
)

LEVELS = (0.05, 0.05 / 3, 0.001)
"""Levels of a single test, of the first of three by Holm's method, and of the first of fifty."""


def test_two_rates_are_compared_as_by_scipy() -> None:
    rng = np.random.default_rng(0)
    for num_a, num_b in rng.integers(2, 60, (20, 2)):
        a, b = (Rate(int(rng.integers(0, num + 1)), int(num)) for num in (num_a, num_b))
        found = compare_rates(a, b, level=0.05)
        table = [[a.successes, b.successes], [a.num - a.successes, b.num - b.successes]]
        assert found.p == pytest.approx(min(boschloo_exact(table).pvalue, 1), abs=1e-9)
        assert found.value == pytest.approx(b.value - a.value)


def test_very_many_episodes_are_compared_by_fishers_test() -> None:
    found = compare_rates(Rate(900, 1000), Rate(930, 1000), level=0.05)
    assert found.test == "Fisher's exact test"
    assert found.p == pytest.approx(fisher_exact([[900, 930], [100, 70]]).pvalue, abs=1e-9)


def test_mcnemar_and_holm_equal_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for lost, won in rng.integers(0, 30, (50, 2)):
        expected = statsmodels_mcnemar([[5, lost], [won, 5]], exact=True).pvalue if lost + won else 1.0
        assert mcnemar(int(lost), int(won)) == pytest.approx(expected, abs=1e-9)
    for _ in range(10):
        p_values = rng.random(7) ** 3
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-9)


def test_a_pair_is_compared_on_its_discordant_initial_states() -> None:
    a, b = np.arange(100) < 80, (np.arange(100) < 90) & (np.arange(100) > 1)
    found = compare_pairs(a, b, level=0.05)
    assert found.value == pytest.approx(0.08)
    assert found.p == mcnemar(2, 10)
    assert found.low < 0.08 < found.high
    agreed = compare_pairs(a, a, level=0.05)
    assert agreed.low < 0 < agreed.high, "agreement on 100 initial states does not prove that both always agree"


def test_only_certainty_is_rounded_to_0_or_100_percent() -> None:
    assert [percent(share) for share in (0, 0.004, 0.5, 0.995, 299 / 300, 1)] == [
        "0",
        "0.4",
        "50",
        "99.5",
        "99.7",
        "100",
    ]
    assert (percent(0.99962, 1), percent(0.00038, 1), percent(1 - 1e-16, 1)) == ("99.96", "0.04", "100.0")
    assert str(Rate(1000, 1000)) == "1000/1000 [99.6, 100 %]"
    assert str(Rate(0, 1000)) == "0/1000 [0, 0.4 %]"
    assert (str(Rate(99, 100)), str(Rate(1, 100))) == ("99/100 [95, 100 %]", "1/100 [0, 5 %]"), "rounded outward"
    tasks = (*[Rate(100, 100)] * 49, Rate(98, 100))
    assert str(MacroAverageRate(tasks)) == "99.96 % [99.9, 100 %]"
    assert str(GroupAverageRate((MacroAverageRate(tasks),))).startswith("99.96 % [")


def assert_agreement(found: Difference) -> None:
    """Assert that the interval excludes 0 if and only if the test rejects."""
    assert (found.low > 0 or found.high < 0) == (found.p < found.level), found
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9, found


@pytest.mark.parametrize("level", LEVELS)
def test_an_interval_of_pairs_excludes_0_if_and_only_if_the_test_rejects(level: float) -> None:
    """All tables of up to 30 discordant initial states."""
    for lost in range(31):
        for won in range(31 - lost):
            for num in {max(1, lost + won), 100}:
                low, high = paired_interval(lost, won, num, level=level)
                assert (low > 0 or high < 0) == (mcnemar(lost, won) < level), (lost, won, num)
                assert low - 1e-9 <= (won - lost) / num <= high + 1e-9


@pytest.mark.parametrize("level", LEVELS)
def test_an_interval_of_rates_excludes_0_if_and_only_if_the_test_rejects(level: float) -> None:
    for num_a, num_b in ((1, 1), (3, 5), (8, 8), (10, 20)):
        for i in range(num_a + 1):
            for j in range(num_b + 1):
                assert_agreement(compare_rates(Rate(i, num_a), Rate(j, num_b), level=level))
    assert_agreement(compare_rates(Rate(900, 1000), Rate(923, 1001), level=level))


@pytest.mark.parametrize("level", LEVELS)
def test_an_interval_of_seeds_excludes_0_if_and_only_if_the_test_rejects(level: float) -> None:
    rng = np.random.default_rng(0)
    for num_seeds in (2, 3, 5):
        for shift in np.linspace(0, 0.9, 60):
            a, b = rng.random((num_seeds, 30)) < 0.05, rng.random((num_seeds, 30)) < 0.05 + shift
            for same_init_states in (True, False):
                assert_agreement(compare_seeds([a], [b], same_init_states=same_init_states, level=level))


def test_holm_levels_reject_the_same_hypotheses_as_holm() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 2, 3, 10):
        for _ in range(100):
            p_values = rng.random(num) ** 4
            rejected = holm(p_values) < 0.05
            assert np.array_equal(p_values < holm_levels(p_values, level=0.05), rejected)
    assert holm_levels(np.array([0.001, 0.2, 0.02]), level=0.05) == pytest.approx([0.05 / 3, 0.05, 0.05 / 2])
    assert holm_levels(np.array([0.02, 0.001]), level=0.05) == pytest.approx([0.05, 0.025])
    assert holm_levels(np.array([0.03, 0.04]), level=0.05) == pytest.approx([0.025, 0.025])


def test_scores_use_the_maximum_likelihood_under_the_hypothesis() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        num_a, num_b = (int(num) for num in rng.integers(5, 60, 2))
        a, b = Rate(int(rng.integers(1, num_a)), num_a), Rate(int(rng.integers(1, num_b)), num_b)
        difference = float(rng.uniform(-0.5, 0.5))
        rate = _maximum(
            partial(_unpaired_likelihood, a, b, difference),
            max(0, -difference),
            min(1, 1 - difference),
        )
        variance = rate * (1 - rate) / a.num + (rate + difference) * (1 - rate - difference) / b.num
        expected = (b.value - a.value - difference) / variance**0.5
        assert unpaired_score(a, b, difference) == pytest.approx(expected, abs=1e-5)
        lost, won = (int(count) for count in rng.integers(1, 10, 2))
        share = _maximum(
            partial(_paired_likelihood, lost, won, difference),
            max(0, -difference),
            (1 - difference) / 2,
        )
        variance = (2 * share + difference - difference**2) / 30
        expected = ((won - lost) / 30 - difference) / variance**0.5
        assert paired_score(lost, won, 30, difference) == pytest.approx(expected, abs=1e-5)


def _unpaired_likelihood(a: Rate, b: Rate, difference: float, rate: float) -> float:
    of_a = _log(a.successes, rate) + _log(a.num - a.successes, 1 - rate)
    return of_a + _log(b.successes, rate + difference) + _log(b.num - b.successes, 1 - rate - difference)


def _paired_likelihood(lost: int, won: int, difference: float, share: float) -> float:
    of_changed = _log(lost, share) + _log(won, share + difference)
    return of_changed + _log(30 - lost - won, 1 - 2 * share - difference)


def _log(count: int, chance: float) -> float:
    return count * float(np.log(max(chance, 1e-300)))


def _maximum(likelihood: Callable[[float], float], low: float, high: float) -> float:
    found = minimize_scalar(lambda x: -likelihood(x), bounds=(low, high), options={"xatol": 1e-12})
    return float(found.x)


@pytest.mark.parametrize("num", [5, 10, 30])
def test_intervals_of_pairs_have_nominal_coverage(num: int) -> None:
    """Coverage is exact: the probability of all tables whose interval contains the truth."""
    tables = np.array([table for table in product(range(num + 1), repeat=2) if sum(table) <= num])
    intervals = np.array([paired_interval(int(lost), int(won), num, level=0.05) for lost, won in tables])
    counts = np.column_stack([tables, num - tables.sum(axis=1)])
    for lost, won in ((0, 0), (0, 0.05), (0.02, 0.02), (0.05, 0.35), (0.1, 0.2), (0.1, 0.5), (0, 0.5), (0.5, 0.5)):
        chances = multinomial.pmf(counts, num, (lost, won, 1 - lost - won))
        assert chances @ _covers(intervals, won - lost) > 0.94, (lost, won)


@pytest.mark.parametrize(("num_a", "num_b"), [(5, 5), (10, 10), (10, 20)])
def test_intervals_of_rates_have_nominal_coverage(num_a: int, num_b: int) -> None:
    tables = list(product(range(num_a + 1), range(num_b + 1)))
    found = [compare_rates(Rate(i, num_a), Rate(j, num_b), level=0.05) for i, j in tables]
    intervals = np.array([(each.low, each.high) for each in found])
    i, j = np.array(tables).T
    for p_a, p_b in ((0.05, 0.05), (0.5, 0.5), (0.5, 0.8), (0.9, 0.95), (0.2, 0.9), (0.8, 1.0)):
        chances = binom.pmf(i, num_a, p_a) * binom.pmf(j, num_b, p_b)
        assert chances @ _covers(intervals, p_b - p_a) > 0.93, (p_a, p_b)


def _covers(intervals: np.ndarray, truth: float) -> np.ndarray:
    return np.asarray((intervals[:, 0] <= truth + 1e-9) & (intervals[:, 1] >= truth - 1e-9))


def test_the_minimum_detectable_effect_is_detected_with_80_percent_power() -> None:
    rng = np.random.default_rng(0)
    difference = detectable_paired(3, 100, level=0.05)
    drawn = rng.multinomial(100, (0.03, 0.03 + difference, 0.94 - difference), 2000)
    assert np.mean([mcnemar(int(lost), int(won)) < 0.05 for lost, won, _ in drawn]) == pytest.approx(0.8, abs=0.04)
    difference = detectable_unpaired(0.5, 40, 40, level=0.05)
    drawn = rng.binomial(40, (0.5, 0.5 - difference), (150, 2))
    p_values = [compare_rates(Rate(int(x), 40), Rate(int(y), 40), level=0.05).p for x, y in drawn]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.8, abs=0.1)
    for num in (3, 5, 20):
        expected = TTestIndPower().solve_power(nobs1=num, alpha=0.05, power=0.8)
        assert detectable_t((2 / num) ** 0.5, 2 * num - 2, level=0.05) == pytest.approx(expected, rel=1e-5)
    assert detectable_paired(0, 5, level=0.05) == 1, "five initial states detect no difference"
    assert detectable_paired(3, 100, level=0.01) > detectable_paired(3, 100, level=0.05)


def _simulate(rng: np.random.Generator, num_seeds: int, logit: float, logits_N: np.ndarray) -> np.ndarray:
    """Draw successes (K, N) of different seeds from initial states of different difficulty."""
    logits = logit + rng.normal(0, 0.5, (num_seeds, 1)) + logits_N
    return rng.random(logits.shape) < 1 / (1 + np.exp(-logits))


def _two_level_bootstrap(rng: np.random.Generator, successes: np.ndarray) -> tuple[float, float]:
    num_seeds, num = successes.shape
    rates = successes.mean(axis=1)[rng.integers(0, num_seeds, (400, num_seeds))]
    low, high = np.quantile(rng.binomial(num, rates).mean(axis=1) / num, (0.025, 0.975))
    return low, high


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_of_few_seeds_cover_where_a_bootstrap_over_seeds_does_not(num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    logit_distribution = rng.normal(0, 1.5, 400_000)
    truth = float((1 / (1 + np.exp(-(2 + logit_distribution + rng.normal(0, 0.5, len(logit_distribution)))))).mean())
    intervals, bootstraps, differences, p_values = [], [], [], []
    for _ in range(500):
        logits_N = rng.choice(logit_distribution, 100)
        a, b = (_simulate(rng, num_seeds, 2, logits_N) for _ in range(2))
        mean = seeds_mean([a])
        intervals.append((mean.low, mean.high))
        bootstraps.append(_two_level_bootstrap(rng, a))
        found = compare_seeds([a], [b], same_init_states=True, level=0.05)
        differences.append((found.low, found.high))
        p_values.append(found.p)
    assert _coverage(intervals, truth) > 0.93
    assert _coverage(bootstraps, truth) < 0.91
    assert _coverage(differences, 0) > 0.93
    assert np.mean(np.array(p_values) < 0.05) < 0.07


def test_episodes_are_not_pooled_over_seeds() -> None:
    wild = np.stack([np.arange(100) < n for n in (90, 88, 2, 85, 5)])
    mean = seeds_mean([wild])
    assert mean.value == pytest.approx(0.54)
    assert mean.low < 0.2
    assert mean.high > 0.88
    assert split_bimodal([0.9, 0.88, 0.02, 0.85, 0.05]) == ([0.02, 0.05], [0.85, 0.88, 0.9])
    assert split_bimodal([0.9, 0.8, 0.7, 0.5]) is None
    assert split_bimodal([0.9, 0.1]) is None


def test_initial_states_of_their_own_are_a_part_of_the_variance_between_seeds() -> None:
    """Their order means nothing then, but it does where the seeds share them."""
    rng = np.random.default_rng(0)
    successes = rng.random((3, 100)) < 0.9
    intervals = []
    for array in (successes, np.sort(successes, axis=1)):
        mean = seeds_mean([array], same_init_states=False)
        intervals.append((mean.low, mean.high))
        assert mean.value == pytest.approx(successes.mean())
    assert intervals[0] == pytest.approx(intervals[1])
    shared = seeds_mean([np.sort(successes, axis=1)])
    assert (shared.low, shared.high) != pytest.approx(intervals[1])


def test_unseen_kinds_of_seeds_are_bounded() -> None:
    for num, total in ((0, 3), (2, 5), (5, 5)):
        expected = proportion_confint(num, total, method="beta")
        assert share_interval(num, total) == pytest.approx(np.nan_to_num(expected, nan=0.0), abs=1e-9)
    for num in (1, 3, 5, 29):
        assert largest_unseen_share(num) == pytest.approx(1 - 0.05 ** (1 / num), abs=1e-9)
    assert largest_unseen_share(seeds_to_bound(0.1)) <= 0.1 < largest_unseen_share(seeds_to_bound(0.1) - 1)
    assert seeds_to_bound(0.1) == 29


def test_seeds_that_all_succeed_leave_uncertainty() -> None:
    all_succeed, none = np.ones((3, 100), bool), np.zeros((3, 100), bool)
    mean = seeds_mean([all_succeed])
    assert mean.value == mean.high == 1
    assert 0.9 < mean.low < 0.99
    found = compare_seeds([none], [all_succeed], same_init_states=True, level=0.05)
    assert (found.value, found.high) == (1, 1)
    assert found.p < 0.001


def test_the_mean_of_groups_has_equal_weights_and_its_interval_covers() -> None:
    """At 10 episodes a task, in the groups of Meta-World's 50 tasks, at rates from 20 to 95 %."""
    rng = np.random.default_rng(0)
    truth = [rng.uniform(low, 0.95, num) for low, num in ((0.7, 28), (0.4, 11), (0.3, 6), (0.2, 5))]
    mean = float(np.mean([rates.mean() for rates in truth]))
    intervals = []
    for _ in range(400):
        groups = []
        for rates in truth:
            groups.append(MacroAverageRate(tuple(Rate(int(k), 10) for k in rng.binomial(10, rates))))
        found = GroupAverageRate(tuple(groups))
        assert found.value == pytest.approx(np.mean([group.value for group in groups]))
        assert found.interval
        intervals.append(found.interval)
    assert _coverage(intervals, mean) >= 0.95
    assert float(np.mean(np.diff(intervals))) < 0.12
    assert GroupAverageRate(tuple(groups[:1])).interval == pytest.approx(groups[0].interval)
    uneven = MacroAverageRate((Rate(1, 10), Rate(1, 20)))
    assert GroupAverageRate((uneven, groups[0])).interval is None
    assert str(GroupAverageRate((MacroAverageRate((Rate(0, 9),)), MacroAverageRate((Rate(9, 9),))))).startswith(
        "50.0 % ["
    )
    assert len(found.rates) == 50


def test_the_mean_over_tasks_has_equal_weights() -> None:
    rng = np.random.default_rng(0)
    easy, hard = rng.random((3, 50)) < 0.9, rng.random((3, 10)) < 0.2
    assert seeds_mean([easy, hard]).value == pytest.approx((easy.mean() + hard.mean()) / 2)
    found = compare_seeds([easy, hard], [easy, ~hard], same_init_states=False, level=0.05)
    assert found.value == pytest.approx((1 - 2 * hard.mean()) / 2)


def _coverage(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals]))


def test_the_area_under_the_curve_equals_a_count_of_pairs() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 3, 20):
        positives, negatives = rng.integers(0, 5, num), rng.integers(0, 4, 7)
        count = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
        assert AreaUnderCurve.of(positives, negatives).value == pytest.approx(count / (7 * num))


@pytest.mark.parametrize(("num_positives", "num_negatives"), [(5, 5), (8, 60), (40, 40)])
@pytest.mark.parametrize("area", [0.5, 0.8, 0.97])
def test_intervals_of_the_area_under_the_curve_have_nominal_coverage(
    num_positives: int, num_negatives: int, area: float
) -> None:
    rng = np.random.default_rng(1)
    shift = np.sqrt(2) * norm.ppf(area)
    intervals = []
    for _ in range(1000):
        positives, negatives = rng.normal(shift, 1, num_positives), rng.normal(0, 1, num_negatives)
        intervals.append(AreaUnderCurve.of(positives, negatives).interval)
    assert _coverage(intervals, area) > 0.92


@pytest.mark.parametrize(("num", "level"), [(19, 0.05), (50, 0.05), (9, 0.1), (30, 0.1)])
def test_a_conformal_threshold_is_exceeded_as_rarely_as_promised(num: int, level: float) -> None:
    rng = np.random.default_rng(2)
    exceeded = [rng.exponential() > conformal_threshold(rng.exponential(size=num), level) for _ in range(20_000)]
    expected = np.floor((num + 1) * level) / (num + 1)
    assert np.mean(exceeded) == pytest.approx(expected, abs=0.006)
    assert np.mean(exceeded) <= level + 0.006
    assert conformal_threshold(rng.exponential(size=fewest_conformal_scores(level) - 1), level) == np.inf
