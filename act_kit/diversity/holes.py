"""Holes: parts of the initial-state distribution that demonstrations leave empty, or nearly so.

A test of a whole distribution hardly sees a hole: with 30 % of a five-dimensional box missing in its middle, the
Kolmogorov-Smirnov test and the energy test pass 50 demonstrations nineteen times in twenty, although the chance that 50
random ones all miss it is 2e-8. So holes are looked for, by four scans, each over one family of shapes:

========= ==========================================================================================================
gap       intervals of one dimension without a demonstration
middle    boxes about the middle of all dimensions, with fewer demonstrations than they should have
pair      rectangles in two dimensions, with fewer demonstrations than they should have
ball      balls in all dimensions without a demonstration
========= ==========================================================================================================

Sizes are shares of the initial states that are evaluated from. "Fewer than they should have" is the likelihood ratio of
Kulldorff (1997), largest over all shapes of the family; how large it is by chance, the simulation of
:mod:`act_kit.diversity.reference` tells.

Shapes: B datasets, N initial states of each, M to hold them against, D informative dimensions, P pairs of dimensions,
Q rectangles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import xlogy

from act_kit.sim.tasks import Task

SCANS = ("gap", "middle", "pair", "ball")

_NUM_CELLS = 8
"""Rectangles are made of cells, this many along each of two dimensions ..."""
_FEWEST_CELLS = 2
"""... and at least so many wide: narrower ones are gaps, or seen by nobody."""


class HoleScan:
    """M initial states, scaled, and the scans for holes against them. Every statistic grows with the hole."""

    def __init__(self, y_MD: np.ndarray, share_MD: np.ndarray) -> None:
        """``share_MD`` tells of every number of Y the share of Y that is not above it."""
        self.y_MD = y_MD
        self.pairs = list(combinations(range(y_MD.shape[1]), 2))
        self._depth_M = np.sort(depth(share_MD))
        self._apart_MM = np.sort(cdist(y_MD, y_MD), axis=1)
        sides = [pair for pair in combinations(range(_NUM_CELLS + 1), 2) if pair[1] - pair[0] >= _FEWEST_CELLS]
        self._sides = np.array(sides)
        self._expected_PQ = [_count(y_MD[None], pair, self._sides)[0] / (len(y_MD) + 1) for pair in self.pairs]
        self._tables: dict[int, list[np.ndarray]] = {}

    def measure(self, x_BND: np.ndarray, share_BND: np.ndarray, nearest_BM: np.ndarray) -> np.ndarray:
        """Return the statistics of B datasets, in the order of ``SCANS``: (B, 4).

        ``share_BND`` is, of every number, the share of Y that is not above it, ``nearest_BM`` the distance from each of
        Y to the nearest of X.
        """
        gap = _gaps(np.sort(share_BND, axis=1)).max(axis=(1, 2))
        middle = self._middle(share_BND)[1].max(axis=1)
        pair = np.zeros(len(x_BND))
        for ratios in self._pair_ratios(x_BND):
            np.maximum(pair, ratios.max(axis=1), out=pair)
        return np.stack([gap, middle, pair, self._empty(nearest_BM).max(axis=1)], axis=1)

    def describe(self, scan: str, task: Task, x_ND: np.ndarray, share_ND: np.ndarray, nearest_M: np.ndarray) -> str:
        """Say where one dataset's largest hole of a scan is."""
        num, names = len(x_ND), [task.dim_name(int(dim)) for dim in task.informative]

        def between(dim: int, begin: float, end: float) -> str:
            low, width = task.low[task.informative[dim]], task.width[task.informative[dim]]
            return f"{names[dim]} between {low + begin * width:.3f} and {low + end * width:.3f} m"

        if scan == "gap":
            gaps = _gaps(np.sort(share_ND, axis=0)[None])[0]
            index, dim = np.unravel_index(gaps.argmax(), gaps.shape)
            ends = [0.0, *np.sort(x_ND[:, dim]).tolist(), 1.0]
            where = between(int(dim), ends[int(index)], ends[int(index) + 1])
            return f"no demonstration has {where}: {gaps.max():.0%} of what is evaluated."
        if scan == "middle":
            shares, ratios = self._middle(share_ND[None])
            index = int(ratios[0].argmax())
            return f"{index} of {num} demonstrations begin in the middle {shares[0, index]:.0%} of the box."
        if scan == "pair":
            all_ratios = [ratios[0] for ratios in self._pair_ratios(x_ND[None])]
            worst = int(np.argmax([ratios.max() for ratios in all_ratios]))
            rectangle, pair = int(all_ratios[worst].argmax()), self.pairs[worst]
            count = _count(x_ND[None], pair, self._sides)[0, rectangle]
            first, second = (self._sides[list(divmod(rectangle, len(self._sides)))] / _NUM_CELLS).tolist()
            where = f"{between(pair[0], *first)} and {between(pair[1], *second)}"
            share = self._expected_PQ[worst][rectangle]
            return f"{count} of {num} demonstrations have {where}, where {share:.0%} of what is evaluated lies."
        empty = self._empty(nearest_M[None])[0]
        center = np.asarray(task.low)[task.informative] + self.y_MD[empty.argmax()] * task.width[task.informative]
        where = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, center, strict=True))
        return f"no demonstration begins near {where}: {empty.max():.0%} of what is evaluated lies nearer to there."

    def _middle(self, share_BND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return of the box that ends at each initial state, from the middle on, its share, and its ratio: (B, N)."""
        share_BN = np.searchsorted(self._depth_M, np.sort(depth(share_BND), axis=1)) / (len(self._depth_M) + 1)
        return share_BN, _ratio(np.arange(share_BN.shape[1]), share_BN.shape[1], share_BN)

    def _pair_ratios(self, x_BND: np.ndarray) -> Iterator[np.ndarray]:
        """Yield of each pair of dimensions the ratios of all rectangles: (B, Q)."""
        num = x_BND.shape[1]
        if num not in self._tables:
            counts = np.arange(num + 1)[:, None]
            self._tables[num] = [_ratio(counts, num, expected_Q) for expected_Q in self._expected_PQ]
        for pair, table in zip(self.pairs, self._tables[num], strict=True):
            counts_BQ = _count(x_BND, pair, self._sides)
            yield np.take_along_axis(table, counts_BQ, axis=0)

    def _empty(self, nearest_BM: np.ndarray) -> np.ndarray:
        """Return of each of Y the share of Y that is nearer to it than the nearest of X: (B, M)."""
        columns = [np.searchsorted(a, n) for a, n in zip(self._apart_MM, nearest_BM.T, strict=True)]
        shares: np.ndarray = np.stack(columns, axis=1) / len(self.y_MD)
        return shares


def depth(share: np.ndarray) -> np.ndarray:
    """Return how far from the middle of all dimensions shares (…, D) are: 0 to 1, (…)."""
    outwards: np.ndarray = np.abs(2 * share - 1).max(axis=-1)
    return outwards


def _gaps(sorted_BND: np.ndarray) -> np.ndarray:
    """Return the intervals between neighbours, and to both ends: (B, N + 1, D)."""
    ends = np.zeros_like(sorted_BND[:, :1])
    return np.diff(np.concatenate([ends, sorted_BND, ends + 1], axis=1), axis=1)


def _count(x_BND: np.ndarray, pair: tuple[int, int], sides: np.ndarray) -> np.ndarray:
    """Count the initial states in every rectangle of two dimensions: int64 (B, Q)."""
    cells_BN2 = np.clip((x_BND[..., list(pair)] * _NUM_CELLS).astype(np.int64), 0, _NUM_CELLS - 1)
    num = len(x_BND)
    flat_BN = (np.arange(num)[:, None] * _NUM_CELLS + cells_BN2[..., 0]) * _NUM_CELLS + cells_BN2[..., 1]
    counts = np.bincount(flat_BN.ravel(), minlength=num * _NUM_CELLS**2).reshape(num, _NUM_CELLS, _NUM_CELLS)
    below = np.zeros((num, _NUM_CELLS + 1, _NUM_CELLS + 1), dtype=np.int64)
    below[:, 1:, 1:] = counts.cumsum(axis=1).cumsum(axis=2)
    rows = below[:, sides[:, 1]] - below[:, sides[:, 0]]
    return (rows[:, :, sides[:, 1]] - rows[:, :, sides[:, 0]]).reshape(num, -1)


def _ratio(counts: np.ndarray, num: int, expected: np.ndarray) -> np.ndarray:
    """Return the log likelihood ratio of ``counts`` of ``num`` where the share ``expected`` was; 0 if not fewer."""
    share = counts / num
    expected = np.maximum(expected, 1e-9)
    inside = xlogy(counts, np.maximum(share, 1e-9) / expected)
    outside = xlogy(num - counts, np.maximum(1 - share, 1e-9) / (1 - expected))
    ratios: np.ndarray = np.where(share < expected, inside + outside, 0.0)
    return ratios
