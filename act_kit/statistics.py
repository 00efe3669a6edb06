"""Success rates with their uncertainty, and what tells two of them apart.

Successes are bool arrays (K, N): of K training seeds, each evaluated from the same N starts. An evaluation of several
tasks is a sequence of them, one array a task. A difference is always the second minus the first.
"""

# Shape suffixes: K training seeds, N starts, T tasks.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, boschloo_exact, fisher_exact, nct, norm, t

CONFIDENCE = 0.95
POWER = 0.8
MIN_SEEDS = 3
"""Fewer training seeds cannot tell methods apart."""

_LARGEST_BOSCHLOO = 500
"""Episodes of an arm; beyond, Boschloo's test takes seconds and gigabytes, and Fisher's says nearly the same."""
_NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Rate:
    """``successes`` of ``num``, with its Wilson 95 % interval (Wilson 1927; SciPy's ``proportion_ci``)."""

    successes: int
    num: int

    @property
    def value(self) -> float:
        return self.successes / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; 0 of 30 is (0, 0.11)."""
        ends = binomtest(self.successes, self.num).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.num} [{100 * low:.0f}, {100 * high:.0f} %]"


@dataclass(frozen=True)
class MeanRate:
    """The mean of the success rates of T tasks, in which every task counts the same."""

    rates: tuple[Rate, ...]

    @property
    def value(self) -> float:
        return float(np.mean([rate.value for rate in self.rates]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end, if there are equally many episodes of every task; else None.

        It is the Wilson interval of all episodes taken together, which is wider than it need be. The variance of the
        mean of T rates p_t, from n episodes each, is sum_t p_t (1 - p_t) / (T² n). Pooling takes it to be
        m (1 - m) / (T n), with m the mean of the p_t. As p (1 - p) is concave, that is never less (Jensen), and more
        the more the tasks differ.
        """
        if len({rate.num for rate in self.rates}) > 1:
            return None
        return Rate(sum(rate.successes for rate in self.rates), sum(rate.num for rate in self.rates)).interval

    def __str__(self) -> str:
        value = f"{100 * self.value:.1f} %"
        if self.interval is None:
            return value
        low, high = self.interval
        return f"{value} [{100 * low:.0f}, {100 * high:.0f} %]"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over training seeds, or a difference.

    Attributes:
        value: In [0, 1], or [-1, 1] of a difference.
        low, high: 95 % interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """A difference and its test.

    Attributes:
        test: Its name.
        p: Two-sided.
        detectable: The difference that this test shows with a power of 80 %, at the level it was asked for; 1 if none.
    """

    test: str
    p: float
    detectable: float


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for multiple tests (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


# -- two checkpoints ---------------------------------------------------------------------------------------------------


def compare_rates(a: Rate, b: Rate, *, level: float) -> Difference:
    """Compare two checkpoints that were evaluated from different starts: Boschloo's test, Newcombe's interval."""
    low, high = newcombe_interval(a, b)
    table = [[a.successes, b.successes], [a.num - a.successes, b.num - b.successes]]
    if max(a.num, b.num) <= _LARGEST_BOSCHLOO:
        test, p = "Boschloo's exact test", float(boschloo_exact(table).pvalue)
    else:
        test, p = "Fisher's exact test", float(fisher_exact(table).pvalue)
    return Difference(
        value=b.value - a.value, low=low, high=high, test=test, p=min(p, 1.0),
        detectable=detectable_unpaired((a.successes + 1) / (a.num + 2), a.num, b.num, level=level),
    )  # fmt: skip


def newcombe_interval(a: Rate, b: Rate) -> tuple[float, float]:
    """Return the 95 % interval of ``b - a`` by Wilson scores (Newcombe 1998, Stat. Med. 17:873, method 10)."""
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    difference = b.value - a.value
    below = np.hypot(b.value - low_b, high_a - a.value)
    above = np.hypot(high_b - b.value, a.value - low_a)
    return float(difference - below), float(difference + above)


def compare_pairs(a_N: np.ndarray, b_N: np.ndarray, *, level: float) -> Difference:
    """Compare two checkpoints from the same starts: exact McNemar test, paired bootstrap; successes are bool (N,)."""
    lost, won = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    low, high = paired_bootstrap(lost, won, len(a_N))
    return Difference(
        value=(won - lost) / len(a_N), low=low, high=high, test="McNemar's exact test", p=mcnemar(lost, won),
        detectable=detectable_paired(min(lost, won), len(a_N), level=level),
    )  # fmt: skip


def mcnemar(lost: int, won: int) -> float:
    """Return the exact two-sided p-value of discordant pairs (McNemar 1947): a sign test."""
    return float(binomtest(won, lost + won).pvalue) if lost + won else 1.0


def paired_bootstrap(lost: int, won: int, num: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of ``(won - lost) / num`` over resampled starts, the same ones every time.

    Half a start is added to each of ``lost`` and ``won`` before resampling. Without, the interval of two policies that
    agree on every start is [0, 0], and where one wins 5 % of the starts and loses none, 30 starts cover that 77 % of
    the time. With it, coverage is 95 to 100 % (simulated with 30 and 100 starts, 2 to 60 % of which differ).
    """
    chances = np.array([lost + 0.5, won + 0.5, num - lost - won]) / (num + 1)
    drawn = np.random.default_rng(0).multinomial(num, chances, _NUM_RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / num, _ENDS)
    return float(low), float(high)


_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def detectable_unpaired(rate: float, num_a: int, num_b: int, *, level: float) -> float:
    """Return the difference from ``rate``, towards one half, that is shown with 80 % power (Fleiss 1981, ch. 3)."""
    first = max(rate, 1 - rate)

    def power(difference: float) -> float:
        second = first - difference
        mean = (num_a * first + num_b * second) / (num_a + num_b)
        limit = norm.isf(level / 2) * np.sqrt(mean * (1 - mean) * (1 / num_a + 1 / num_b))
        error = np.sqrt(first * (1 - first) / num_a + second * (1 - second) / num_b)
        return float(norm.cdf((difference - limit) / max(error, 1e-9)))

    return _smallest(power, first)


def detectable_paired(against: int, num: int, *, level: float) -> float:
    """Return the difference that McNemar's exact test shows with 80 % power.

    ``against`` of ``num`` starts are those that the worse policy wins all the same, of which another evaluation would
    see as many.
    """
    lost = against / num

    def power(difference: float) -> float:
        discordant = np.arange(num + 1)
        either = 2 * lost + difference
        # The fewest of the discordant starts that must be won for p <= level.
        needed = binom.isf(level / 2, discordant, 0.5) + 1
        shown = binom.sf(needed - 1, discordant, (lost + difference) / either)
        return float(binom.pmf(discordant, num, either) @ shown)

    return _smallest(power, 1 - 2 * lost)


def _smallest(power: Callable[[float], float], largest: float) -> float:
    """Return the smallest difference of enough power, to 0.001; 1 if not even ``largest`` has it."""
    if power(largest) <= POWER:
        return 1.0
    return float(brentq(lambda difference: power(difference) - POWER, 1e-6, largest, xtol=1e-3))


# -- training seeds ----------------------------------------------------------------------------------------------------

Tasks = Sequence[np.ndarray]
"""Successes of every task, bool (K, N) each: N may differ between tasks, K not."""


def seeds_mean(tasks: Tasks) -> Estimate:
    """Return the mean success over training seeds, every task counting the same; see :func:`compare_seeds`."""
    value, error, df = _contrast([[(1, tasks)]])
    half = t.ppf(_ENDS[1], df) * error
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def compare_seeds(a: Tasks, b: Tasks, *, same_starts: bool, level: float) -> Difference:
    """Compare two methods, of each of which several training seeds were evaluated from the same starts.

    A t interval whose variance has three sources (Welch-Satterthwaite degrees of freedom):

    - the seeds, the unit of replication: the variance of their success rates. Episodes are never pooled over seeds.
      It is taken to be at least what N episodes of one seed vary by, so that three seeds at 100 % are no certainty;
    - the starts, since all seeds share them: what success varies by between starts beyond chance (the two-way random
      effects model of seeds and starts). Ten seeds evaluated from the same 100 starts agree about these, not about
      others. Where both methods saw the same starts, only what they differ by on a start counts.

    Why not the percentile bootstrap over seeds? It is too narrow: simulated at a success of 50 to 97 %, a nominal
    95 % covers 50 to 74 % with three seeds and 47 to 83 % with five; with episodes resampled within the seeds 78 to
    91 % and 80 to 94 %; a bootstrap-t 51 to 81 % and 48 to 91 %. This interval covers 92 to 100 % and 92 to 98 %, and
    that of a difference 93 to 97 %. What no interval of so few covers is a rare other kind of seed: if one in ten fails
    entirely, five seeds show none of them 59 % of the time. So every seed is shown, always, and :func:`two_kinds` names
    those that fall apart.
    """
    value, error, df = _contrast([[(-1, a), (1, b)]] if same_starts else [[(-1, a)], [(1, b)]])
    half = t.ppf(_ENDS[1], df) * error
    return Difference(
        value=value, low=max(-1.0, value - half), high=min(1.0, value + half), test="t test of seeds",
        p=float(2 * t.sf(abs(value) / error, df)), detectable=min(1.0, detectable_t(error, df, level=level)),
    )  # fmt: skip


def _contrast(groups: Sequence[Sequence[tuple[int, Tasks]]]) -> tuple[float, float, float]:
    """Return a signed sum of the arms' means, its standard error and degrees of freedom; a group shares its starts."""
    value = 0.0
    terms: list[tuple[float, int]] = []  # variance, its degrees of freedom
    for group in groups:
        num_tasks = len(group[0][1])
        for sign, tasks in group:
            rates_KT = np.stack([of_task.mean(axis=1) for of_task in tasks], axis=1)
            seeds_K = rates_KT.mean(axis=1)
            value += sign * float(seeds_K.mean())
            num_T = np.array([of_task.shape[1] for of_task in tasks])
            smoothed_KT = (rates_KT * num_T + 1) / (num_T + 2)
            of_episodes = float((smoothed_KT * (1 - smoothed_KT) / num_T).mean(axis=0).sum()) / num_tasks**2
            terms.append((max(float(seeds_K.var(ddof=1)), of_episodes) / len(seeds_K), len(seeds_K) - 1))
        for i in range(num_tasks):
            starts_N = sum(sign * tasks[i].mean(axis=0) for sign, tasks in group)
            if len(starts_N) > 1:
                chance = sum(_interaction(tasks[i]) / len(tasks[i]) for _, tasks in group)
                beyond = max(0.0, float(starts_N.var(ddof=1)) - chance)
                terms.append((beyond / len(starts_N) / num_tasks**2, len(starts_N) - 1))
    total = sum(variance for variance, _ in terms)
    df = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    return value, float(np.sqrt(total)), df


def _interaction(successes_KN: np.ndarray) -> float:
    """Return the mean square of what neither the seed nor the start explains."""
    x = successes_KN.astype(float)
    residual = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    return float((residual**2).sum()) / ((len(x) - 1) * (len(x[0]) - 1))


def detectable_t(error: float, df: float, *, level: float) -> float:
    """Return the difference that a two-sided t test with this standard error shows with 80 % power (noncentral t)."""
    limit = t.isf(level / 2, df)
    return error * float(brentq(lambda shift: nct.sf(limit, df, shift) - POWER, 0, 2 * limit + 2))


def two_kinds(rates: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """Divide the seeds' success rates where they fall apart into two kinds, the worse first; None if they do not.

    They do where the widest gap is at least 0.3 and twice as wide as either side: .90 .88 .02 .85 .05 are no training
    that succeeds half of the time, but one that works and one that fails.
    """
    ordered = sorted(rates)
    gaps = np.diff(ordered)
    if len(rates) < MIN_SEEDS:
        return None
    cut = int(gaps.argmax()) + 1
    worse, better = ordered[:cut], ordered[cut:]
    inside = max(worse[-1] - worse[0], better[-1] - better[0])
    return (worse, better) if gaps[cut - 1] >= max(0.3, 2 * inside) else None
