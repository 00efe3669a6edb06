"""Success rates, their confidence intervals, and tests of the difference of two of them.

Successes are bool arrays (K, N): K training seeds, each evaluated from the same N initial states. An evaluation of
several tasks is a sequence of such arrays, one per task. A difference is always the second minus the first.
"""

# Shape suffixes: K training seeds, N initial states, T tasks.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, boschloo_exact, fisher_exact, nct, norm, rankdata, t

CONFIDENCE = 0.95
POWER = 0.8
MIN_SEEDS = 3
"""Smallest number of training seeds that can distinguish two methods."""

_MAX_BOSCHLOO_EPISODES = 500
"""Largest number of episodes per method for Boschloo's test.

With more, it takes seconds and gigabytes, and Fisher's test gives nearly the same p-value.
"""


def percent(share: float, digits: int = 0) -> str:
    """Return a share as a number of percent, with more digits where it would be rounded to 0 or 100 and is neither."""
    while round(100 * share, digits) in (0, 100) and min(abs(share), abs(share - 1)) > 1e-9:
        digits += 1
    return f"{100 * share:.{digits}f}"


def percent_ends(low: float, high: float) -> tuple[str, str]:
    """Return the ends of an interval of a share as numbers of percent: 99.6 to 100 and 0 to 0.4, but 0 to 3.

    Only an end that is rounded inward, which would make the interval empty, has more digits.
    """
    return percent(low) if low > 0.5 else f"{100 * low:.0f}", percent(high) if high < 0.5 else f"{100 * high:.0f}"


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson 95 % interval (Wilson 1927; SciPy's ``proportion_ci``).

    Attributes:
        successes: Number of successful episodes.
        num: Number of episodes.
    """

    successes: int
    num: int

    @property
    def value(self) -> float:
        """Success rate, 0 to 1."""
        return self.successes / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; 0 of 30 is (0, 0.11)."""
        ends = binomtest(self.successes, self.num).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)

    def to_dict(self) -> dict[str, float]:
        """Return plain values, with the ends of the interval."""
        low, high = self.interval
        return {"successes": self.successes, "num": self.num, "value": self.value, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = percent_ends(*self.interval)
        return f"{self.successes}/{self.num} [{low}, {high} %]"


@dataclass(frozen=True)
class MacroAverageRate:
    """The mean of the success rates of T tasks, with equal weights."""

    rates: tuple[Rate, ...]

    @property
    def _counts(self) -> np.ndarray:
        """Numbers of successes and of episodes, int64 (2, T)."""
        return np.array([(rate.successes, rate.num) for rate in self.rates]).T

    @property
    def value(self) -> float:
        """Mean of the rates, 0 to 1."""
        return float(np.mean(np.divide(*self._counts)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end if all tasks have the same number of episodes; otherwise None.

        It is the Wilson interval of the pooled episodes, which is conservative. The variance of the mean of T rates
        p_t, from n episodes each, is sum_t p_t (1 - p_t) / (T² n). Pooling assumes m (1 - m) / (T n), where m is the
        mean of the p_t. As p (1 - p) is concave, this is never smaller (Jensen), and grows with the differences
        between the tasks.
        """
        if np.ptp(self._counts[1]):
            return None
        return Rate(*self._counts.sum(axis=1).tolist()).interval

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{}, {} %]".format(*percent_ends(*self.interval))
        return f"{percent(self.value, 1)} %{ends}"


@dataclass(frozen=True)
class GroupAverageRate:
    """The mean of the means of G groups of tasks, with equal weights per group."""

    groups: tuple[MacroAverageRate, ...]

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Rates of all tasks."""
        return tuple(chain.from_iterable(group.rates for group in self.groups))

    @property
    def value(self) -> float:
        """Mean of the means, 0 to 1."""
        return float(np.mean([group.value for group in self.groups]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end if the tasks of each group have the same number of episodes; otherwise None.

        The method of variance estimates recovery (Zou and Donner 2008, doi 10.1002/sim.3095) combines the intervals
        [l_g, u_g] of the independent means p_g: the ends are at sqrt(sum_g (p_g - l_g)²) / G below and
        sqrt(sum_g (u_g - p_g)²) / G above the mean. Conservative, as those of the groups are.
        """
        ends = [group.interval for group in self.groups]
        if None in ends:
            return None
        values_G = np.array([group.value for group in self.groups])
        ends_2G = np.array(ends).T
        below, above = np.linalg.norm(ends_2G - values_G, axis=1) / len(self.groups)
        return self.value - float(below), self.value + float(above)

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{}, {} %]".format(*percent_ends(*self.interval))
        return f"{percent(self.value, 1)} %{ends}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over training seeds, or a difference.

    Attributes:
        value: Mean in [0, 1], or difference in [-1, 1].
        low, high: Ends of the 95 % interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """A difference of two success rates and its test.

    The interval inverts the test: at every level, it excludes 0 if and only if ``p < level``.

    Attributes:
        low, high: Ends of the interval with confidence ``1 - level``.
        test: Name of the test.
        p: Two-sided p-value.
        level: Significance level of the test and the interval.
        detectable: Minimum detectable effect: the difference that this test detects with a power of 80 % at this
            level; 1 if there is none.
    """

    test: str
    p: float
    level: float
    detectable: float


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for multiple tests (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def holm_levels(p_values: np.ndarray, *, level: float) -> np.ndarray:
    """Return the level at which Holm's method tests each of m p-values.

    The k-th smallest is tested at ``level / (m - k + 1)`` until one is not rejected; this one and all larger p-values
    have its level. So an interval at this level excludes 0 if and only if Holm's method rejects.
    """
    order = np.argsort(p_values, kind="stable")
    steps = level / np.arange(len(p_values), 0, -1)
    accepted = np.flatnonzero(p_values[order] >= steps)
    if len(accepted):
        steps[accepted[0] :] = steps[accepted[0]]
    levels = np.empty_like(steps)
    levels[order] = steps
    return levels


# -- two checkpoints ---------------------------------------------------------------------------------------------------


def compare_rates(a: Rate, b: Rate, *, level: float) -> Difference:
    """Compare two checkpoints evaluated from different initial states.

    Boschloo's test is used up to 500 episodes, Fisher's test beyond. The interval
    inverts the score test (Miettinen and Nurminen 1985); see :func:`_invert`.
    """
    use_boschloo = max(a.num, b.num) <= _MAX_BOSCHLOO_EPISODES
    test = "Boschloo's exact test" if use_boschloo else "Fisher's exact test"
    p = _exact_p(a, b, boschloo=use_boschloo)
    value = b.value - a.value
    low, high = _invert(lambda difference: unpaired_score(a, b, difference), value, p, level)
    detectable = detectable_unpaired((a.successes + 1) / (a.num + 2), a.num, b.num, level=level)
    return Difference(value=value, low=low, high=high, test=test, p=p, level=level, detectable=detectable)


@cache  # Boschloo's test takes seconds, and Holm's method needs each p-value twice
def _exact_p(a: Rate, b: Rate, *, boschloo: bool) -> float:
    table = [[a.successes, b.successes], [a.num - a.successes, b.num - b.successes]]
    return min(float((boschloo_exact if boschloo else fisher_exact)(table).pvalue), 1.0)


def unpaired_score(a: Rate, b: Rate, difference: float) -> float:
    """Return the score statistic of the hypothesis that ``b - a`` is ``difference``.

    Source: Miettinen and Nurminen 1985, Stat. Med. 4:213, without their factor of N / (N - 1). The rate of ``a`` under
    the hypothesis is the root of their cubic equation, whose coefficients are ``c3`` to ``c0``.
    """
    total = a.num + b.num
    successes = a.successes + b.successes
    c3 = total
    c2 = (b.num + 2 * a.num) * difference - total - successes
    c1 = (a.num * difference - total - 2 * a.successes) * difference + successes
    c0 = a.successes * difference * (1 - difference)
    q = c2**3 / (3 * c3) ** 3 - c1 * c2 / (6 * c3**2) + c0 / (2 * c3)
    r = np.copysign(np.sqrt(max(c2**2 / (3 * c3) ** 2 - c1 / (3 * c3), 0.0)), q)
    angle = (np.pi + np.arccos(np.clip(q / r**3 if r else 0.0, -1, 1))) / 3
    rate_a = float(np.clip(2 * r * np.cos(angle) - c2 / (3 * c3), max(0.0, -difference), min(1.0, 1 - difference)))
    rate_b = float(np.clip(rate_a + difference, 0, 1))
    variance = rate_a * (1 - rate_a) / a.num + rate_b * (1 - rate_b) / b.num
    return _standardize(b.value - a.value - difference, variance)


def compare_pairs(a_N: np.ndarray, b_N: np.ndarray, *, level: float) -> Difference:
    """Compare two checkpoints evaluated from the same initial states, with the exact McNemar test.

    Successes are bool (N,). The interval inverts the score test (Tango 1998); see :func:`_invert`.
    """
    num, lost, won = len(a_N), int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    value, p, test = (won - lost) / num, mcnemar(lost, won), "McNemar's exact test"
    low, high = paired_interval(lost, won, num, level=level)
    detectable = detectable_paired(min(lost, won), num, level=level)
    return Difference(value=value, low=low, high=high, test=test, p=p, level=level, detectable=detectable)


def mcnemar(lost: int, won: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947): a sign test of the discordant pairs."""
    return float(binomtest(won, lost + won).pvalue) if lost + won else 1.0


def paired_interval(lost: int, won: int, num: int, *, level: float) -> tuple[float, float]:
    """Return the interval of ``(won - lost) / num`` that excludes 0 if and only if ``mcnemar(lost, won) < level``."""
    value, p = (won - lost) / num, mcnemar(lost, won)
    return _invert(lambda difference: paired_score(lost, won, num, difference), value, p, level)


def paired_score(lost: int, won: int, num: int, difference: float) -> float:
    """Return the score statistic of the hypothesis that the paired difference is ``difference``.

    Source: Tango 1998, Stat. Med. 17:891. Under the hypothesis, the share of initial states from which only the first
    checkpoint succeeds is the root of Tango's quadratic equation.
    """
    b = (2 * num - won + lost) * difference - won - lost
    c = lost * difference * (1 - difference)
    only_first = (np.sqrt(max(b**2 + 8 * num * c, 0.0)) - b) / (4 * num)
    variance = (2 * only_first + difference * (1 - difference)) / num
    return _standardize((won - lost) / num - difference, variance)


def _standardize(distance: float, variance: float) -> float:
    """Return a distance in standard errors; finite even if the variance is 0."""
    return distance / float(np.sqrt(max(variance, 1e-18)))


def _invert(score: Callable[[float], float], value: float, p: float, level: float) -> tuple[float, float]:
    """Return the lowest and the highest difference that a test does not reject at ``level``.

    A difference of 0 is tested by the exact test, whose p-value is ``p``. Other differences have no exact test that is
    as simple; they are tested by ``score``, which decreases with the difference and is 0 at ``value``. To make both
    agree at 0, the limit of the score is raised by the amount by which the score of 0 exceeds the quantile of ``p``:
    the exact test is stricter. (At levels far below 0.01 it can be less strict; the limit is then the score of 0.)
    """
    limit = norm.isf(level / 2)
    score_of_zero = abs(score(0.0))
    limit += max(0.0, score_of_zero - norm.isf(p / 2))
    if p < level:
        limit = min(limit, score_of_zero - 1e-6)
    low = -1.0 if score(-1.0) <= limit else brentq(lambda x: score(x) - limit, -1.0, value, xtol=1e-12)
    high = 1.0 if score(1.0) >= -limit else brentq(lambda x: score(x) + limit, value, 1.0, xtol=1e-12)
    return float(low), float(high)


def detectable_unpaired(rate: float, num_a: int, num_b: int, *, level: float) -> float:
    """Return the difference from ``rate``, toward one half, that is detected with 80 % power (Fleiss 1981, ch. 3)."""
    first = max(rate, 1 - rate)

    def power(difference: float) -> float:
        second = first - difference
        mean = (num_a * first + num_b * second) / (num_a + num_b)
        limit = norm.isf(level / 2) * np.sqrt(mean * (1 - mean) * (1 / num_a + 1 / num_b))
        error = np.sqrt(first * (1 - first) / num_a + second * (1 - second) / num_b)
        return float(norm.cdf((difference - limit) / max(error, 1e-9)))

    return _smallest_detectable(power, first)


def detectable_paired(against: int, num: int, *, level: float) -> float:
    """Return the difference that McNemar's exact test detects with 80 % power.

    From ``against`` of ``num`` initial states only the worse policy succeeds; another evaluation is assumed to have the
    same share of them.
    """
    lost = against / num

    def power(difference: float) -> float:
        discordant = np.arange(num + 1)
        either = 2 * lost + difference
        # Smallest number of the discordant pairs that the better policy must win for p <= level.
        needed = binom.isf(level / 2, discordant, 0.5) + 1
        shown = binom.sf(needed - 1, discordant, (lost + difference) / either)
        return float(binom.pmf(discordant, num, either) @ shown)

    return _smallest_detectable(power, 1 - 2 * lost)


def _smallest_detectable(power: Callable[[float], float], largest: float) -> float:
    """Return the smallest difference with a power of 80 %, to 0.001; 1 if even ``largest`` has less."""
    if power(largest) <= POWER:
        return 1.0
    return float(brentq(lambda difference: power(difference) - POWER, 1e-6, largest, xtol=1e-3))


# -- training seeds ----------------------------------------------------------------------------------------------------

Tasks = Sequence[np.ndarray]
"""Successes of every task, bool (K, N) each: N may differ between tasks, K may not."""


def seeds_mean(tasks: Tasks, *, same_init_states: bool = True) -> Estimate:
    """Return the mean success rate over training seeds, with equal weights of the tasks.

    The interval is that of :func:`compare_seeds`. It does not cover a failing kind of seed that is absent from the
    sample: :func:`largest_unseen_share` bounds the share of such seeds.

    Args:
        tasks: Successes of every task.
        same_init_states: False if every seed was evaluated from initial states of its own: these are then a part of the
            variance between the seeds, and no variance of shared initial states is added.
    """
    value, error, df = _contrast([[(1, tasks)]], seeds_share_init_states=same_init_states)
    half = float(t.isf((1 - CONFIDENCE) / 2, df)) * error
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def compare_seeds(a: Tasks, b: Tasks, *, same_init_states: bool, level: float) -> Difference:
    """Compare two methods, each with several training seeds that were evaluated from the same initial states.

    The t interval (Welch-Satterthwaite degrees of freedom) has these sources of variance:

    - The seeds, which are the unit of replication: the variance of their success rates. Episodes are never pooled over
      seeds. This variance is at least the sampling variance of the N episodes of one seed, so three seeds at 100 % do
      not give an interval of width 0.
    - The initial states, since all seeds share them: the variance of success between initial states beyond chance (the
      two-way random-effects model of seeds and initial states). Ten seeds evaluated from the same 100 initial states
      agree about these, not about others. Where both methods have the same initial states, only the differences
      between the methods per initial state count.

    The percentile bootstrap over seeds is not used because it is too narrow: simulated at a success rate of 50 to
    97 %, a nominal 95 % covers 50 to 74 % with three seeds and 47 to 83 % with five; with episodes resampled within
    the seeds 78 to 91 % and 80 to 94 %; a bootstrap-t 51 to 81 % and 48 to 91 %.

    This interval has its nominal coverage if all seeds are of one kind. No interval from so few seeds covers a second
    kind, such as failed trainings, that is absent from the sample: ``python -m benchmarks.seed_intervals`` prints the
    table, docs/statistics.md explains the consequences. So reports always show every seed, :func:`split_bimodal`
    detects two kinds, and :func:`largest_unseen_share` bounds the share of a kind that was not seen.
    """
    value, error, df = _contrast([[(-1, a), (1, b)]] if same_init_states else [[(-1, a)], [(1, b)]])
    half = float(t.isf(level / 2, df)) * error
    low, high = max(-1.0, value - half), min(1.0, value + half)
    p, test = float(2 * t.sf(abs(value) / error, df)), "t test of seeds"
    detectable = min(1.0, detectable_t(error, df, level=level))
    return Difference(value=value, low=low, high=high, test=test, p=p, level=level, detectable=detectable)


def _contrast(
    groups: Sequence[Sequence[tuple[int, Tasks]]], *, seeds_share_init_states: bool = True
) -> tuple[float, float, float]:
    """Return a signed sum of the methods' means, its standard error and its degrees of freedom.

    The methods of one group share their initial states; the seeds of a method do if ``seeds_share_init_states``.
    """
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
            episode_variance = float((smoothed_KT * (1 - smoothed_KT) / num_T).mean(axis=0).sum()) / num_tasks**2
            terms.append((max(float(seeds_K.var(ddof=1)), episode_variance) / len(seeds_K), len(seeds_K) - 1))
        for i in range(num_tasks):
            init_states_N = sum(sign * tasks[i].mean(axis=0) for sign, tasks in group)
            if seeds_share_init_states and len(init_states_N) > 1:
                chance = sum(_interaction(tasks[i]) / len(tasks[i]) for _, tasks in group)
                beyond = max(0.0, float(init_states_N.var(ddof=1)) - chance)
                terms.append((beyond / len(init_states_N) / num_tasks**2, len(init_states_N) - 1))
    total = sum(variance for variance, _ in terms)
    df = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    return value, float(np.sqrt(total)), df


def _interaction(successes_KN: np.ndarray) -> float:
    """Return the mean square of the residuals of the additive model of seeds and initial states."""
    x = successes_KN.astype(float)
    residual = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    return float((residual**2).sum()) / ((len(x) - 1) * (len(x[0]) - 1))


def detectable_t(error: float, df: float, *, level: float) -> float:
    """Return the difference that a two-sided t test with this standard error detects with 80 % power (noncentral t)."""
    limit = t.isf(level / 2, df)
    return error * float(brentq(lambda shift: nct.sf(limit, df, shift) - POWER, 0, 2 * limit + 2))


GAP = 0.3
"""Smallest gap between success rates that splits the seeds into two kinds."""


def split_bimodal(rates: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """Split the seeds' success rates into two modes, the lower first; return None if they have one mode.

    They have two if the widest gap is at least :data:`GAP` and twice as wide as the range of either side: .90 .88 .02
    .85 .05 is not a training that succeeds half of the time, but one that either works or fails.
    """
    ordered = sorted(rates)
    gaps = np.diff(ordered)
    if len(rates) < MIN_SEEDS:
        return None
    cut = int(gaps.argmax()) + 1
    worse, better = ordered[:cut], ordered[cut:]
    widest_range = max(worse[-1] - worse[0], better[-1] - better[0])
    return (worse, better) if gaps[cut - 1] >= max(GAP, 2 * widest_range) else None


def share_interval(num: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, given ``num`` of ``total`` (Clopper and Pearson 1934)."""
    ends = binomtest(num, total).proportion_ci(CONFIDENCE, method="exact")
    return float(ends.low), float(ends.high)


def largest_unseen_share(num: int) -> float:
    """Return the 95 % upper bound of the share of a kind of seed that none of ``num`` seeds shows.

    It is the one-sided Clopper-Pearson limit: 3 seeds leave 63 %, 29 seeds 10 %.
    """
    return float(binomtest(0, num, alternative="less").proportion_ci(CONFIDENCE, method="exact").high)


def seeds_to_bound(share: float) -> int:
    """Return the number of seeds that bounds the share of an unseen kind of seed at ``share``; 29 at 0.1."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(1 - share)))


# -- scores and thresholds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AreaUnderCurve:
    """The area under a ROC curve: the probability that a positive has a larger score than a negative.

    Attributes:
        value: The area, 0 to 1; equal scores count half.
        num_positives, num_negatives: Numbers of scores.
    """

    value: float
    num_positives: int
    num_negatives: int

    @classmethod
    def of(cls, positives: np.ndarray, negatives: np.ndarray) -> AreaUnderCurve:
        """Compute it from the scores of the positives and the negatives, at least one each (Mann and Whitney 1947)."""
        num_positives, num_negatives = len(positives), len(negatives)
        ranks = rankdata(np.concatenate([positives, negatives]))
        above = float(ranks[:num_positives].sum()) - num_positives * (num_positives + 1) / 2
        return cls(above / (num_positives * num_negatives), num_positives, num_negatives)

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval (Newcombe 2006, Stat. Med. 25:559, method 5).

        It inverts a score statistic with the variance of exponential scores, with equal numbers of both kinds (Hanley
        and McNeil 1982), so its width is not 0 at an area of 1.
        """
        limit = norm.isf((1 - CONFIDENCE) / 2)
        others = (self.num_positives + self.num_negatives) / 2 - 1

        def score(area: float) -> float:
            inflation = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
            variance = area * (1 - area) * inflation / (self.num_positives * self.num_negatives)
            return _standardize(self.value - area, variance)

        low = 0.0 if self.value == 0 else brentq(lambda area: score(area) - limit, 0.0, self.value, xtol=1e-12)
        high = 1.0 if self.value == 1 else brentq(lambda area: score(area) + limit, self.value, 1.0, xtol=1e-12)
        return float(low), float(high)

    def to_dict(self) -> dict[str, float]:
        """Return plain values, with the ends of the interval."""
        low, high = self.interval
        counts = {"num_positives": self.num_positives, "num_negatives": self.num_negatives}
        return {"value": self.value, "low": low, "high": high, **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


def conformal_threshold(scores: np.ndarray, level: float) -> float:
    """Return the threshold that a new score exceeds with a probability of at most ``level`` (split conformal).

    It is the k-th smallest of n scores, (n,), with k = ceil((n + 1)(1 - level)); infinity if k > n. The probability is
    over the new score and these n together, which must be exchangeable (Vovk et al. 2005; Lei et al. 2018, J. Am. Stat.
    Assoc. 113:1094, section 2.2). With n fixed scores, the rate of exceedances is distributed as
    beta(n + 1 - k, k).
    """
    rank = int(np.ceil(round((len(scores) + 1) * (1 - level), 9)))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")


def fewest_conformal_scores(level: float) -> int:
    """Return the smallest number of scores for which :func:`conformal_threshold` is finite; 19 at 0.05."""
    return int(np.ceil(round(1 / level, 9))) - 1
