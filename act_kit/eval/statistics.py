"""Success rates with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

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
