"""Holes: parts of the initial-state distribution that demonstrations leave empty, or nearly so.

Tests of the whole distribution rarely detect a hole: with 30 % of a five-dimensional box missing in its middle, the
Kolmogorov-Smirnov test and the energy test pass 50 demonstrations 19 times in 20, although the probability that 50
random initial states all miss it is 2e-8. So four scans search for holes, each over one family of shapes:

========= ==========================================================================================================
gap       intervals of one dimension without a demonstration
middle    boxes around the center of all dimensions, with fewer demonstrations than expected
pair      rectangles in two dimensions, with fewer demonstrations than expected
ball      balls in all dimensions without a demonstration
========= ==========================================================================================================

Sizes are shares of the reference initial states Y, from which policies are evaluated. "Fewer than expected" is measured
by the likelihood ratio of Kulldorff (1997), maximized over all shapes of the family; its distribution by chance comes
from the simulation in :mod:`act_kit.diversity.reference`.

Shapes: B datasets, N initial states of each, M reference initial states, D informative dimensions, P pairs of
dimensions, Q rectangles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import xlogy

from act_kit.sim.tasks import Task

SCANS = ("gap", "middle", "pair", "ball")

_NUM_CELLS = 8
"""Number of cells along each of the two dimensions of the rectangles."""
_MIN_CELLS = 2
"""Smallest side of a rectangle in cells: narrower ones are gaps or undetectable."""


class HoleScan:
    """Scans for holes with M scaled reference initial states Y. Statistics increase with the size of the hole."""

    def __init__(self, y_MD: np.ndarray, share_MD: np.ndarray) -> None:
        """Prepare the scans; ``share_MD`` is the empirical distribution function of Y at Y, per dimension."""
        self.y_MD = y_MD
        self.pairs = list(combinations(range(y_MD.shape[1]), 2))
        self._depth_M = np.sort(_depth(share_MD))
        self._apart_MM = np.sort(cdist(y_MD, y_MD), axis=1).T
        sides = np.array(list(combinations(range(_NUM_CELLS + 1), 2)))
        self._sides = sides[np.diff(sides)[:, 0] >= _MIN_CELLS]
        self._expected_PQ = [_count(y_MD[None], pair, self._sides)[0] / (len(y_MD) + 1) for pair in self.pairs]
        self._tables: dict[int, list[np.ndarray]] = {}

    def measure(self, x_BND: np.ndarray, share_BND: np.ndarray, nearest_BM: np.ndarray) -> np.ndarray:
        """Return the statistics of B datasets, in the order of ``SCANS``: (B, 4).

        ``share_BND`` is the empirical distribution function of Y at X, ``nearest_BM`` the distance from each of Y to
        the nearest of X.
        """
        gap = _gaps(np.sort(share_BND, axis=1)).max(axis=(1, 2))
        middle = self._middle(share_BND)[1].max(axis=1)
        pair = np.zeros(len(x_BND))
        for ratios in self._pair_ratios(x_BND):
            np.maximum(pair, ratios.max(axis=1), out=pair)
        return np.stack([gap, middle, pair, self._empty(nearest_BM).max(axis=1)], axis=1)

    def describe(self, scan: str, task: Task, x_ND: np.ndarray, share_ND: np.ndarray, nearest_M: np.ndarray) -> str:
        """Describe the largest hole that a scan finds in one dataset."""
        num, dims = len(x_ND), task.informative
        names = [task.dim_name(int(dim)) for dim in dims]
        low, width = np.asarray(task.low)[dims], task.width[dims]

        def between(dim: int, begin: float, end: float) -> str:
            first, last = low[dim] + np.array([begin, end]) * width[dim]
            return f"{names[dim]} between {first:.3f} and {last:.3f} m"

        if scan == "gap":
            gaps = _gaps(np.sort(share_ND, axis=0)[None])[0]
            index, dim = map(int, np.unravel_index(gaps.argmax(), gaps.shape))
            ends = [0.0, *np.sort(x_ND[:, dim]).tolist(), 1.0]
            where = between(dim, ends[index], ends[index + 1])
            return f"no demonstration has {where}: {gaps.max():.0%} of the evaluated initial states."
        if scan == "middle":
            shares, ratios = self._middle(share_ND[None])
            index = int(ratios[0].argmax())
            return f"{index} of {num} demonstrations begin in the middle {shares[0, index]:.0%} of the box."
        if scan == "pair":
            ratios_PQ = np.concatenate(list(self._pair_ratios(x_ND[None])))
            pair, rectangle = map(int, np.unravel_index(ratios_PQ.argmax(), ratios_PQ.shape))
            count = _count(x_ND[None], self.pairs[pair], self._sides)[0, rectangle]
            begins, ends = self._sides[list(divmod(rectangle, len(self._sides)))].T / _NUM_CELLS
            where = " and ".join(map(between, self.pairs[pair], begins, ends))
            share = self._expected_PQ[pair][rectangle]
            return (
                f"{count} of {num} demonstrations have {where}, where {share:.0%} of the evaluated initial states lie."
            )
        empty = self._empty(nearest_M[None])[0]
        center = low + self.y_MD[empty.argmax()] * width
        where = ", ".join(map("{} {:.3f}".format, names, center))
        return (
            f"no demonstration begins near {where}: {empty.max():.0%} of the evaluated initial states are closer to it."
        )

    def _middle(self, share_BND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the share and the likelihood ratio of each centered box that ends at an initial state: (B, N) each."""
        share_BN = np.searchsorted(self._depth_M, np.sort(_depth(share_BND), axis=1)) / (len(self._depth_M) + 1)
        return share_BN, _ratio(np.arange(share_BN.shape[1]), share_BN.shape[1], share_BN)

    def _pair_ratios(self, x_BND: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the likelihood ratios of all rectangles, (B, Q), per pair of dimensions."""
        num = x_BND.shape[1]
        if num not in self._tables:
            counts = np.arange(num + 1)[:, None]
            self._tables[num] = [_ratio(counts, num, expected_Q) for expected_Q in self._expected_PQ]
        for pair, table in zip(self.pairs, self._tables[num], strict=True):
            yield np.take_along_axis(table, _count(x_BND, pair, self._sides), axis=0)

    def _empty(self, nearest_BM: np.ndarray) -> np.ndarray:
        """Return for each of Y the share of Y that is closer to it than the nearest of X: (B, M)."""
        return num_below(self._apart_MM, nearest_BM) / len(self.y_MD)


def num_below(sorted_MG: np.ndarray, values: np.ndarray, side: Literal["left", "right"] = "left") -> np.ndarray:
    """Return how many of each of G sorted columns are below values (…, G): int64 (…, G).

    Equal ones count only if ``side`` is ``right``.
    """
    columns = [np.searchsorted(column, values[..., i], side) for i, column in enumerate(sorted_MG.T)]
    return np.stack(columns, axis=-1)


def _depth(share: np.ndarray) -> np.ndarray:
    """Return the distance of shares (…, D) from the center, 0 to 1: (…)."""
    distance: np.ndarray = np.abs(2 * share - 1).max(axis=-1)
    return distance


def _gaps(sorted_BND: np.ndarray) -> np.ndarray:
    """Return the intervals between neighbors and to both ends: (B, N + 1, D)."""
    return np.diff(np.pad(sorted_BND, ((0, 0), (1, 1), (0, 0)), constant_values=((0, 0), (0, 1), (0, 0))), axis=1)


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
    """Return the log likelihood ratio of ``counts`` of ``num`` given the expected share; 0 if they are not fewer."""
    share = counts / num
    expected = np.maximum(expected, 1e-9)
    inside = xlogy(counts, np.maximum(share, 1e-9) / expected)
    outside = xlogy(num - counts, np.maximum(1 - share, 1e-9) / (1 - expected))
    return np.where(share < expected, inside + outside, 0.0)
