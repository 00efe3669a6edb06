"""Which holes N demonstrations of a task can show at all: how large one must be for the report to warn about it.

That no hole was seen says little where none could be. So datasets with holes of all sizes are simulated, and judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from act_kit.diversity.reference import ALPHA, ALPHA_HOLES, Pool, ReferenceStatistics, cached, distribution_of
from act_kit.sim.tasks import Task

# Shapes: B simulated datasets, N initial states of each, M to hold them against, D informative dimensions.

LEAST_BEYOND = 0.05
"""Fresh starts that are farther from a demonstration than 1 % should be: more than this are warned about."""
POWER = 0.8
_SHARES = tuple(round(0.05 * i, 2) for i in range(1, 19))
_NUM_DATASETS = 100
_SEED = 20230416


@dataclass(frozen=True, kw_only=True)
class VisibleHole:
    """The smallest hole of a kind that is seen eight times of ten.

    Attributes:
        where: Of which kind.
        share: Its size, as a share of the initial states that are evaluated from, in steps of 5 %; None where not even
            90 % missing is seen.
    """

    where: str
    share: float | None


def visible_holes(task: Task, num: int, y_MD: np.ndarray, reference: ReferenceStatistics) -> list[VisibleHole]:
    """Return the smallest holes that the report sees in ``num`` demonstrations; from the user's cache if possible.

    Holes are boxes about the middle, or about a random initial state, without one demonstration inside.
    """
    kinds = _kinds(y_MD.shape[1])
    distribution = (
        *distribution_of(task, y_MD),
        ALPHA,
        ALPHA_HOLES,
        LEAST_BEYOND,
        POWER,
        _SHARES,
        _NUM_DATASETS,
        _SEED,
    )
    shares = cached(
        f"holes-{task.name}-{num}", distribution, ["shares"], lambda: {"shares": _simulate(task, num, y_MD, reference)}
    )
    return [
        VisibleHole(where=where, share=float(share) if np.isfinite(share) else None)
        for where, share in zip(kinds, shares["shares"], strict=True)
    ]


def _kinds(num_dims: int) -> dict[str, int]:
    """Name the kinds of holes, each with the number of dimensions that it takes up."""
    kinds = {"in the middle of the box": num_dims, "anywhere in the box": num_dims}
    if num_dims > 2:
        kinds["anywhere in two dimensions"] = 2
    if num_dims > 1:
        kinds["anywhere in one dimension"] = 1
    return kinds


def _simulate(task: Task, num: int, y_MD: np.ndarray, reference: ReferenceStatistics) -> np.ndarray:
    """Find the smallest share of each kind by bisection; infinite where none is seen."""
    rng = np.random.default_rng(_SEED)
    pool = Pool(task, num, y_MD, _SEED)
    smallest = []
    for kind, num_dims in _kinds(y_MD.shape[1]).items():
        shares = [*_SHARES, np.inf]
        low, high = 0, len(_SHARES)
        while low < high:
            middle = (low + high) // 2
            datasets = [
                _with_hole(pool.x, shares[middle], num, num_dims, "middle" in kind, rng) for _ in range(_NUM_DATASETS)
            ]
            if _are_seen(reference, pool, np.stack(datasets)).mean() >= POWER:
                high = middle
            else:
                low = middle + 1
        smallest.append(shares[low])
    return np.array(smallest)


def _with_hole(
    x: np.ndarray, size: float, num: int, num_dims: int, is_middle: bool, rng: np.random.Generator
) -> np.ndarray:
    """Choose ``num`` of a pool outside the box about a point, in some dimensions, that holds a share ``size`` of it.

    A box of metres, as holes are. In the coordinates of the scans, shares of Y, it would fit them better than any that
    is met: in push-v3, holes of 25 % would be seen always, where real ones of 25 % are seen less than half of the time.
    """
    dims = rng.permutation(x.shape[1])[:num_dims]
    center = 0.5 if is_middle else x[rng.integers(len(x))][dims]
    apart = np.abs(x[:, dims] - center).max(axis=1)
    return rng.choice(np.argsort(apart)[round(size * len(x)) :], num, replace=False)


def _are_seen(reference: ReferenceStatistics, pool: Pool, rows_BN: np.ndarray) -> np.ndarray:
    """Tell which datasets are warned about, as far as the scans for holes and ``beyond`` go: bool (B,)."""
    nearest_BM = pool.nearest(rows_BN)
    by_scan = reference.holes.familywise(pool.hole_values(rows_BN, nearest_BM)).min(axis=1) <= ALPHA_HOLES
    beyond = (nearest_BM > reference.nearest_p99).mean(axis=1)
    values = np.full((len(rows_BN), reference.values.shape[1]), -np.inf)
    values[:, -1] = beyond
    by_beyond = (reference.coverage.familywise(values)[:, -1] <= ALPHA) & (beyond > LEAST_BEYOND)
    seen: np.ndarray = by_scan | by_beyond
    return seen
