"""Success rates with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


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
