"""Smallest holes that the diversity report detects in N demonstrations of a task.

Without this, a report without holes could not be interpreted: few demonstrations cannot show any. So datasets with
holes of all sizes are simulated and tested.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from act_kit.diversity.reference import ALPHA, ALPHA_HOLES, Pool, ReferenceStatistics, cached, distribution_of
from act_kit.sim.tasks import Task

# Shapes: B simulated datasets, N initial states of each, M reference initial states, D informative dimensions.

MIN_BEYOND = 0.05
"""Smallest share of new initial states beyond the 99th percentile of the distance that causes a warning."""
POWER = 0.8
_SHARES = tuple(round(0.05 * i, 2) for i in range(1, 19))
_NUM_DATASETS = 100
_SEED = 20230416


@dataclass(frozen=True, kw_only=True)
class VisibleHole:
    """The smallest hole of a kind that is detected with a probability of 80 %.

    Attributes:
        where: Kind of the hole.
        share: Size as a share of the evaluated initial states, in steps of 5 %; None if not even a hole of 90 % is
            detected.
    """

    where: str
    share: float | None


def visible_holes(task: Task, num: int, y_MD: np.ndarray, reference: ReferenceStatistics) -> list[VisibleHole]:
    """Return the smallest holes that the report detects in ``num`` demonstrations, from the user's cache if possible.

    Holes are boxes around the center or around a random initial state that contain no demonstration.
    """
    settings = (ALPHA, ALPHA_HOLES, MIN_BEYOND, POWER, _SHARES, _NUM_DATASETS, _SEED)
    shares = cached(
        f"holes-{task.name}-{num}",
        (*distribution_of(task, y_MD), *settings),
        lambda: {"shares": _simulate(task, num, y_MD, reference)},
    )["shares"]
    holes = []
    for where, share in zip(_kinds(y_MD.shape[1]), shares, strict=True):
        holes.append(VisibleHole(where=where, share=float(share) if np.isfinite(share) else None))
    return holes


def _kinds(num_dims: int) -> dict[str, int]:
    """Return the kinds of holes and the number of dimensions of each."""
    kinds = {"in the middle of the box": num_dims, "anywhere in the box": num_dims}
    if num_dims > 2:
        kinds["anywhere in two dimensions"] = 2
    if num_dims > 1:
        kinds["anywhere in one dimension"] = 1
    return kinds


def _simulate(task: Task, num: int, y_MD: np.ndarray, reference: ReferenceStatistics) -> np.ndarray:
    """Find the smallest detected share of each kind by bisection; infinite if none is detected."""
    rng = np.random.default_rng(_SEED)
    pool = Pool(task, num, y_MD, _SEED)
    smallest = []
    for kind, num_dims in _kinds(y_MD.shape[1]).items():

        def is_visible(share: float, num_dims: int = num_dims, is_middle: bool = "middle" in kind) -> bool:
            datasets = [_with_hole(pool.x, share, num, num_dims, is_middle, rng) for _ in range(_NUM_DATASETS)]
            return bool(_are_detected(reference, pool, np.stack(datasets)).mean() >= POWER)

        smallest.append(bisect.bisect_left(_SHARES, True, key=is_visible))
    return np.array([*_SHARES, np.inf])[smallest]


def _with_hole(
    x: np.ndarray, size: float, num: int, num_dims: int, is_middle: bool, rng: np.random.Generator
) -> np.ndarray:
    """Sample ``num`` rows of a pool outside a box that contains a share ``size`` of it.

    The box is defined in meters, as real holes are. Boxes in the coordinates of the scans, shares of Y, would be easier
    to detect: in push-v3, holes of 25 % would always be detected, while real ones of 25 % are detected less than half
    of the time.
    """
    dims = rng.permutation(x.shape[1])[:num_dims]
    center = 0.5 if is_middle else x[rng.integers(len(x))][dims]
    distance = np.abs(x[:, dims] - center).max(axis=1)
    return rng.choice(np.argsort(distance)[round(size * len(x)) :], num, replace=False)


def _are_detected(reference: ReferenceStatistics, pool: Pool, rows_BN: np.ndarray) -> np.ndarray:
    """Return which datasets cause a warning by the scans for holes or by ``beyond``, bool (B,)."""
    nearest_BM = pool.nearest(rows_BN)
    by_scan = reference.holes.familywise(pool.hole_values(rows_BN, nearest_BM)).min(axis=1) <= ALPHA_HOLES
    beyond = (nearest_BM > reference.nearest_p99).mean(axis=1)
    values = np.full((len(rows_BN), reference.values.shape[1]), -np.inf)
    values[:, -1] = beyond
    by_beyond = (reference.coverage.familywise(values)[:, -1] <= ALPHA) & (beyond > MIN_BEYOND)
    return np.asarray(by_scan | by_beyond)
