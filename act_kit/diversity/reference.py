"""Reference distributions of the diversity statistics, from thousands of simulated healthy datasets.

A healthy dataset is N draws from the task's own initial-state distribution, rejection included. Every statistic of the
verdict is compared with its reference distribution, so that a warning means the same for a task with one dimension and
one with five, for 20 demonstrations and for 1,000. The simulation takes a second and is stored in the user's cache.

Shapes: B simulated datasets, N initial states of each, M reference initial states Y, D informative dimensions,
G statistics, P initial states of the pool that datasets are drawn from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist

from act_kit.diversity.holes import HoleScan, num_below
from act_kit.sim.initial_states import SAME_INIT_STATE_M, distinct, scale
from act_kit.sim.tasks import Task

VERSION = 2
"""Version of the statistics below; cached simulations of other versions are ignored."""
NUM_SIMULATED = 4000
ALPHA = 0.015
"""Largest probability of a warning about a healthy dataset, over all statistics; most also require an effect size."""
ALPHA_HOLES = 0.0015
"""The same over all scans for holes, which require no effect size."""
NUM_REFERENCE = 1000
MAX_INIT_STATES = 500
"""Number of initial states sampled from a larger dataset: enough for the verdict, and bounds time and memory."""
_MAX_PAIRED = 200
"""Number of initial states whose mutual distances enter the energy distance, for the same reason."""
_POOL_SEED, _REFERENCE_SEED = 20230413, 20230414
_MAX_CACHE_BYTES = 2**26
"""Largest unpacked size of a cache file; the largest files have a hundredth of it."""


def accepted(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Return which of the initial states (N, 3 or 6) the task accepts, bool (N,); see :meth:`Task.is_resampled`."""
    if not task.min_object_goal_distance:
        return np.ones(len(rand_vecs), dtype=bool)
    goal_xy = rand_vecs[:, 3:5] if task.goal_xy is None else np.asarray(task.goal_xy)
    return np.asarray(np.linalg.norm(rand_vecs[:, :2] - goal_xy, axis=1) >= task.min_object_goal_distance)


def draw(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw ``num`` initial states from the task's distribution, rejection included; float64 (num, 3 or 6)."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((0, len(task.low)))
    while len(drawn) < num:
        batch = rng.uniform(task.low, task.high, (2 * num, len(task.low)))
        drawn = np.concatenate([drawn, batch[accepted(task, batch)]])
    return drawn[:num]


@functools.cache
def reference_init_states(task: Task, num: int = NUM_REFERENCE) -> np.ndarray:
    """Return ``num`` fixed initial states that represent the task's distribution; float64 (num, 3 or 6)."""
    return draw(task, num, _REFERENCE_SEED)


def count_distinct(rand_vecs: np.ndarray) -> int:
    """Count the distinct initial states of (N, 3 or 6): a faster :func:`~act_kit.sim.initial_states.distinct`."""
    rows = np.unique(rand_vecs, axis=0)
    if len(rows) < 2:
        return len(rows)
    is_isolated = cKDTree(rows).query(rows, k=2, p=np.inf)[0][:, 1] > SAME_INIT_STATE_M
    return int(is_isolated.sum()) + len(distinct(rows[~is_isolated]))


def distance_to_nearest(rows: np.ndarray, others: np.ndarray, p: float = 2.0) -> np.ndarray:
    """Return the p-norm distance from each of ``others`` (M, D) to the nearest of ``rows`` (N, D): float64 (M,)."""
    return np.asarray(cKDTree(rows).query(others, p=p)[0])


class ReferenceSet:
    """M scaled reference initial states Y, and the statistics that compare a dataset with them.

    Every statistic increases as a dataset gets worse. Per dimension: ``range`` and ``std`` (negative ratios to those of
    Y), ``ks`` (Kolmogorov-Smirnov). Joint: ``energy`` (Székely and Rizzo 2004), ``rank`` (negative effective rank of
    the correlation matrix), ``correlation`` (largest difference of a pair's correlation from that in Y).
    """

    def __init__(self, y_MD: np.ndarray) -> None:
        self.y_MD = y_MD
        self._sorted_MD = np.sort(y_MD, axis=0)
        self.range_D = np.ptp(y_MD, axis=0)
        self.std_D = y_MD.std(axis=0)
        self.correlation_DD = correlations(y_MD)
        self._within = 2 * pdist(y_MD).sum() / len(y_MD) ** 2
        self.holes = HoleScan(y_MD, self.share_below(y_MD))

    @property
    def statistics(self) -> list[tuple[str, int]]:
        """Names of the G statistics in order, each with its dimension (-1 for joint statistics)."""
        per_dimension = list(product(("range", "std", "ks"), range(self.y_MD.shape[1])))
        return [*per_dimension, ("energy", -1), ("rank", -1), ("correlation", -1)]

    def share_below(self, x_ND: np.ndarray) -> np.ndarray:
        """Return the empirical distribution function of Y at x, per dimension: (N, D)."""
        return num_below(self._sorted_MD, x_ND, "right") / len(self.y_MD)

    def measure(self, x_BND: np.ndarray, share_BND: np.ndarray, mean_distance_BN: np.ndarray) -> np.ndarray:
        """Return the statistics of B datasets, (B, G).

        ``share_BND`` is their :meth:`share_below`, ``mean_distance_BN`` the mean distance of each initial state to Y.
        """
        num = x_BND.shape[1]
        steps = np.arange(num + 1)[None, :, None] / num
        share = np.sort(share_BND, axis=1)
        ks = np.maximum(np.abs(steps[:, 1:] - share), np.abs(share - steps[:, :-1])).max(axis=1)
        paired = x_BND[:, :_MAX_PAIRED]
        between = np.array([2 * pdist(x).sum() for x in paired]) / paired.shape[1] ** 2
        energy = 2 * mean_distance_BN[:, :_MAX_PAIRED].mean(axis=1) - between - self._within
        correlation = correlations(x_BND)
        differences = np.abs(correlation - self.correlation_DD)
        differences *= 1 - np.eye(differences.shape[-1])
        range_ratio, std_ratio = ratio(np.ptp(x_BND, axis=1), self.range_D), ratio(x_BND.std(axis=1), self.std_D)
        joint = np.stack([energy, -effective_rank(correlation), differences.max(axis=(1, 2))], axis=1)
        return np.concatenate([-range_ratio, -std_ratio, ks, joint], axis=1)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; return 1 where Y does not vary, as in some evaluation sets: X need not vary there either."""
    varies = denominator > 1e-9
    return np.where(varies, numerator / np.where(varies, denominator, 1), 1.0)


def correlations(x_ND: np.ndarray) -> np.ndarray:
    """Return correlation matrices (…, D, D) of (…, N, D); rows of a constant dimension are zero."""
    centered = x_ND - x_ND.mean(axis=-2, keepdims=True)
    spread = centered.std(axis=-2, keepdims=True)
    unit = np.where(spread > 1e-9, centered / np.maximum(spread, 1e-9), 0.0)
    return np.asarray(np.swapaxes(unit, -1, -2) @ unit / x_ND.shape[-2])


def effective_rank(correlation_DD: np.ndarray) -> np.ndarray:
    """Return the effective rank (Roy and Vetterli 2007), exp(entropy) of the normalized eigenvalues: (…).

    It is D if the dimensions are uncorrelated.
    """
    eigenvalues = np.clip(np.linalg.eigvalsh(correlation_DD), 1e-12, None)
    shares = eigenvalues / eigenvalues.sum(axis=-1, keepdims=True)
    return np.asarray(np.exp(-(shares * np.log(shares)).sum(axis=-1)))


class Distribution:
    """The distribution of some statistics over healthy datasets, float32 (B, G)."""

    def __init__(self, values: np.ndarray) -> None:
        self._sorted = np.sort(values, axis=0)
        self._smallest_p = np.sort(self._p_values(values).min(axis=1))

    def _p_values(self, values: np.ndarray) -> np.ndarray:
        num = len(self._sorted)
        return (num - num_below(self._sorted, values)) / (1 + num)

    def p_values(self, values: np.ndarray) -> np.ndarray:
        """Return each statistic's p-value, at least 1 / (B + 1); (…, G)."""
        return self._p_values(values.astype(np.float32)) + 1 / (1 + len(self._sorted))

    def familywise(self, values: np.ndarray) -> np.ndarray:
        """Return the p-values adjusted for all statistics by the minimum p-value method (Westfall and Young 1993)."""
        num_as_small = np.searchsorted(self._smallest_p, self.p_values(values) * (1 + 1e-9), "right")
        return np.asarray((1 + num_as_small) / (1 + len(self._smallest_p)))


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """Statistics of healthy datasets of N initial states.

    Attributes:
        values: float32 (B, G + 1): the statistics of :class:`ReferenceSet`, then ``beyond``.
        hole_values: float32 (B, 4): the statistics of :class:`~act_kit.diversity.holes.HoleScan`.
        nearest: Mean, 95th percentile and maximum of the distances from Y to the nearest initial state, each averaged
            over healthy datasets, in box widths; (3,).
        nearest_p99: 99th percentile of all these distances.
        rank: Mean effective rank.
    """

    values: np.ndarray
    hole_values: np.ndarray
    nearest: np.ndarray
    nearest_p99: np.ndarray
    rank: np.ndarray

    @functools.cached_property
    def coverage(self) -> Distribution:
        """The distribution of ``values``."""
        return Distribution(self.values)

    @functools.cached_property
    def holes(self) -> Distribution:
        """The distribution of ``hole_values``: a separate family with its own false-alarm rate."""
        return Distribution(self.hole_values)


class Pool:
    """Many scaled initial states of a task that datasets are drawn from: faster than drawing every dataset anew."""

    def __init__(self, task: Task, num: int, y_MD: np.ndarray, seed: int) -> None:
        """Draw about 50 times ``num`` initial states and compute their distances to Y."""
        self.reference_set = ReferenceSet(y_MD)
        self.x = scale(task, draw(task, int(np.clip(50 * num, 4000, 20000)), seed))
        self.share = self.reference_set.share_below(self.x)
        self.distances = np.empty((len(self.x), len(y_MD)), dtype=np.float32)
        for begin in range(0, len(self.x), 2000):
            self.distances[begin : begin + 2000] = cdist(self.x[begin : begin + 2000], y_MD)

    def nearest(self, rows_BN: np.ndarray) -> np.ndarray:
        """Return the distance from each of Y to the nearest initial state of each dataset: (B, M)."""
        return np.stack([self.distances[rows].min(axis=0) for rows in rows_BN])

    def hole_values(self, rows_BN: np.ndarray, nearest_BM: np.ndarray) -> np.ndarray:
        """Return the statistics of the scans for holes: (B, 4)."""
        return self.reference_set.holes.measure(self.x[rows_BN], self.share[rows_BN], nearest_BM)


def simulate(task: Task, num: int, y_MD: np.ndarray, *, seed: int = _POOL_SEED) -> ReferenceStatistics:
    """Draw healthy datasets of ``num`` initial states and compute their statistics against the scaled Y (M, D)."""
    rng = np.random.default_rng(seed)
    pool = Pool(task, num, y_MD, seed)
    measure, mean_distance = pool.reference_set.measure, pool.distances.mean(axis=1)
    results = []
    num_simulated = 0
    while num_simulated < NUM_SIMULATED:
        # Use every initial state of the pool once per permutation: faster than drawing, and nearly independent.
        chosen = rng.permutation(len(pool.x))[: len(pool.x) // num * num].reshape(-1, num)
        for part in np.array_split(chosen, -(-chosen.size // 40000)):
            if num_simulated < NUM_SIMULATED:
                nearest, values = pool.nearest(part), measure(pool.x[part], pool.share[part], mean_distance[part])
                results.append((nearest, pool.hole_values(part, nearest), values))
                num_simulated += len(part)
    nearest_BM, holes_BH, values_BG = map(np.concatenate, zip(*results, strict=True))
    p99 = np.percentile(nearest_BM, 99)
    beyond = (nearest_BM > p99).mean(axis=1)
    p95, largest = np.percentile(nearest_BM, 95, axis=1), nearest_BM.max(axis=1)
    return ReferenceStatistics(
        values=np.column_stack([values_BG, beyond]).astype(np.float32),
        hole_values=holes_BH.astype(np.float32),
        nearest=np.array([nearest_BM.mean(), p95.mean(), largest.mean()]),
        nearest_p99=p99,
        rank=-values_BG[:, pool.reference_set.statistics.index(("rank", -1))].mean(),
    )


@functools.lru_cache(maxsize=64)
def reference_statistics_of(task: Task, num: int) -> ReferenceStatistics:
    """Return the statistics of ``num`` initial states of a task, compared with the task's own distribution."""
    return reference_statistics_against(task, num, scale(task, reference_init_states(task)))


def distribution_of(task: Task, y_MD: np.ndarray) -> tuple[object, ...]:
    """Return the inputs of a simulation against Y except the number of initial states."""
    y_hash = hashlib.sha256(np.ascontiguousarray(y_MD).tobytes()).hexdigest()
    return VERSION, NUM_SIMULATED, task, _POOL_SEED, y_hash


def reference_statistics_against(task: Task, num: int, y_MD: np.ndarray) -> ReferenceStatistics:
    """Return the result of :func:`simulate` from the user's cache; compute and store it if it is missing."""
    key = distribution_of(task, y_MD)
    return ReferenceStatistics(**cached(f"null-{task.name}-{num}", key, lambda: vars(simulate(task, num, y_MD))))


def cache_folder() -> Path:
    """Return the cache folder: ``ACT_KIT_CACHE``, or ``act_kit`` in the user's cache.

    For a user without a home directory, it is in the folder of temporary files.
    """
    if os.environ.get("ACT_KIT_CACHE"):
        return Path(os.environ["ACT_KIT_CACHE"])
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is not set and the user is not in the system's user database
        return Path(tempfile.gettempdir()) / f"act_kit-{os.getuid()}"
    return home / "act_kit"


def cached(name: str, key: object, compute: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays that ``compute`` returns, by name, from the cache if it holds them for this ``key``.

    A cache file that is unreadable, damaged or not writable is not an error: the arrays are computed.
    """
    path = cache_folder() / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CACHE_BYTES:
            raise OSError("missing, or not a cache file")
        with path.open("rb") as file, np.load(file) as stored:
            if sum(part.file_size for part in stored.zip.infolist()) > _MAX_CACHE_BYTES:
                raise OSError("not a cache file")
            read = dict(stored)
            if str(read.pop("digest")) != _digest(read):
                raise ValueError("digest mismatch")
            return read
    except Exception:  # missing, truncated or foreign: NumPy raises many exceptions
        computed = {key: np.asarray(values) for key, values in compute().items()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".partial") as folder:
            np.savez(Path(folder) / path.name, digest=_digest(computed), **computed)  # type: ignore[arg-type]
            os.replace(Path(folder) / path.name, path)
    return computed


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of arrays, including their names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
