"""What the intervals of docs/statistics.md cover, by simulation and by exact sums.

    python -m benchmarks.seed_intervals

Training seeds, each evaluated from the same 100 initial states: of one kind, with a spread of 0.5 logits between them
and of 1.5 between initial states; and of two kinds, most at 95 % and a share at 5 %. The truth is the mean success of a
new seed, from new initial states.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.special import expit
from scipy.stats import binom, multinomial, norm

from act_kit.statistics import (
    Rate,
    holm_levels,
    largest_unseen_share,
    mcnemar,
    paired_interval,
    seeds_mean,
    share_interval,
    split_bimodal,
)

NUM_SEEDS = (3, 5, 10, 20)
NUM_STATES = 100
SHARES = (0.05, 0.1, 0.2, 0.33, 0.5)
WORKING, COLLAPSED = 0.95, 0.05

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Draws successes, bool (K, N), of K seeds."""


def draw_one_kind(logit: float) -> Draw:
    """Draw seeds of one kind."""

    def draw(rng: np.random.Generator, num: int) -> np.ndarray:
        logits = logit + rng.normal(0, 0.5, (num, 1)) + rng.normal(0, 1.5, NUM_STATES)
        return np.asarray(rng.random(logits.shape) < expit(logits))

    return draw


def mean_of_one_kind(logit: float) -> float:
    """Return the mean success of a new seed from a new initial state."""
    points = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    return float(expit(logit + np.hypot(0.5, 1.5) * points).mean())


def draw_two_kinds(share: float) -> Draw:
    """Draw seeds of which a share has collapsed."""

    def draw(rng: np.random.Generator, num: int) -> np.ndarray:
        rates = np.where(rng.random((num, 1)) < share, COLLAPSED, WORKING)
        return np.asarray(rng.random((num, NUM_STATES)) < rates)

    return draw


def measure(draw: Draw, num_seeds: int, truth: float, share: float, repeats: int) -> list[float]:
    """Return how often the interval holds the truth, two kinds are named, and the limit holds the share."""
    rng = np.random.default_rng(0)
    covers, named, holds = [], [], []
    for _ in range(repeats):
        successes = draw(rng, num_seeds)
        mean, kinds = seeds_mean([successes]), split_bimodal(list(successes.mean(axis=1)))
        covers.append(mean.low <= truth <= mean.high)
        named.append(kinds is not None)
        low, high = _limits(len(kinds[0]) if kinds else 0, num_seeds)
        # Seeds that all collapsed are of one kind, of which the others are the unseen one.
        all_collapsed = kinds is None and share > 0 and successes.mean() < 0.5
        holds.append(low <= (1 - share if all_collapsed else share) <= high)
    return [float(np.mean(of)) for of in (covers, named, holds)]


@cache
def _limits(num: int, num_seeds: int) -> tuple[float, float]:
    return share_interval(num, num_seeds) if num else (0.0, largest_unseen_share(num_seeds))


def print_seeds(repeats: int) -> None:
    """Print what is covered by number of seeds."""
    cases: list[tuple[str, Draw, float, float]] = [
        (f"one kind, {100 * mean_of_one_kind(logit):.0f} %", draw_one_kind(logit), mean_of_one_kind(logit), 0.0)
        for logit in (0.0, 2.0, 4.0)
    ]
    for share in SHARES:
        truth = share * COLLAPSED + (1 - share) * WORKING
        cases.append((f"{100 * share:.0f} % collapsed", draw_two_kinds(share), truth, share))
    print("In per cent, for 3 / 5 / 10 / 20 training seeds:\n")
    print("| seeds | the interval of the mean holds it | two kinds are named | the limit of the share holds it |")
    print("|---|---|---|---|")
    for name, draw, truth, share in cases:
        found = np.array([measure(draw, num, truth, share, repeats) for num in NUM_SEEDS])
        cells = [" / ".join(map("{:.0f}".format, column)) for column in 100 * found.T]
        print(f"| {name} | {' | '.join(cells)} |")


def print_pairs() -> None:
    """Print the lowest coverage of the paired interval, exactly, over a lattice of chances."""
    print("\n| initial states | lowest coverage of the paired interval | mean |\n|---|---|---|")
    chances = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5)
    for num in (5, 10, 30, 50, 100):
        tables = np.array([(lost, won) for lost in range(num + 1) for won in range(num + 1 - lost)])
        intervals = np.array([paired_interval(int(lost), int(won), num, level=0.05) for lost, won in tables])
        counts = np.column_stack([tables, num - tables.sum(axis=1)])
        covered = [
            multinomial.pmf(counts, num, (lost, won, 1 - lost - won)) @ _hold(intervals, won - lost)
            for lost in chances
            for won in chances
            if lost <= won
        ]
        print(f"| {num} | {100 * min(covered):.1f} % | {100 * np.mean(covered):.1f} % |")


def _hold(intervals: np.ndarray, truth: float) -> np.ndarray:
    return np.asarray((intervals[:, 0] <= truth + 1e-9) & (intervals[:, 1] >= truth - 1e-9))


def print_families(repeats: int) -> None:
    """Print how often all paired intervals of a family hold, at the levels of Holm's method."""
    print("\n| comparisons | of which really differ | all intervals hold |\n|---|---|---|")
    rng = np.random.default_rng(0)
    for differing in ((0, 0, 0), (0, 0, 0.2), (0, 0.1, 0.2), (0.1, 0.1, 0.2), (0.2,) * 3, (0.15,) * 10):
        held = [_family_holds(rng, differing) for _ in range(repeats)]
        print(f"| {len(differing)} | {sum(x > 0 for x in differing)} | {100 * np.mean(held):.1f} % |")


def _family_holds(rng: np.random.Generator, differences: Sequence[float]) -> bool:
    drawn = [rng.multinomial(NUM_STATES, (0.05, 0.05 + x, 0.9 - x)) for x in differences]
    levels = holm_levels(np.array([mcnemar(int(lost), int(won)) for lost, won, _ in drawn]), level=0.05)
    intervals = [
        paired_interval(int(lost), int(won), NUM_STATES, level=float(level))
        for (lost, won, _), level in zip(drawn, levels, strict=True)
    ]
    return all(low <= x <= high for (low, high), x in zip(intervals, differences, strict=True))


def print_gates() -> None:
    """Print how often a policy passes a gate on ``success_lower`` whose limit is its true success, at most."""
    print("\n| episodes | passes `success_lower>=p` with a success of p, at most, p ≥ 0.5 | any p |\n|---|---|---|")
    for num in (1, 3, 10, 30, 100, 300):
        limits = np.array([Rate(successes, num).interval[0] for successes in range(1, num + 1)])
        passes = binom.sf(np.arange(num), num, limits)
        high = f"{100 * passes[limits >= 0.5].max():.1f} %" if (limits >= 0.5).any() else "never"
        print(f"| {num} | {high} | {100 * passes.max():.1f} % |")


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    print_seeds(repeats)
    print_pairs()
    print_families(repeats // 2)
    print_gates()


if __name__ == "__main__":
    main()
