"""What healthy datasets look like: the statistics of thousands of draws of N starts from a task's own reset law.

Every statistic that a verdict rests on is read against its distribution here, so that an alarm means the same for a
task of one dimension and one of five, for 20 demonstrations and for 1,000, rejection in the reset law included. The
simulation takes a second and is kept in the user's cache.

Shapes: B simulated datasets, N starts of each, M starts to hold them against, D informative dimensions, G gates,
P starts of the pool that datasets are drawn from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist

from act_kit.diversity.holes import HoleScan
from act_kit.sim.initial_states import SAME_INIT_STATE_M, distinct
from act_kit.sim.tasks import Task

VERSION = 2
"""Of the statistics below; an older simulation is then not used."""
NUM_SIMULATED = 4000
ALPHA = 0.015
"""A healthy dataset's chance to be warned about, at most, over all gates of its distribution; most ask for more."""
ALPHA_HOLES = 0.0015
"""The same over all scans for holes, which ask for nothing else."""
NUM_REFERENCE = 1000
MOST_INIT_STATES = 500
"""Larger datasets are judged by this many of their starts: that shows all that matters, and bounds time and memory."""
_MOST_PAIRED = 200
"""Starts whose mutual distances enter the energy distance, for the same reason."""
_POOL_SEED, _REFERENCE_SEED = 20230413, 20230414
_MAX_CACHE_BYTES = 2**26
"""Of a file of the cache, unpacked; the largest has a hundredth of it."""


def accepted(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Tell which of (N, 3 or 6) the reset law does not draw again: :meth:`Task.rejects`, of many at once."""
    if not task.too_near:
        return np.ones(len(rand_vecs), dtype=bool)
    goal_xy = rand_vecs[:, 3:5] if task.goal_xy is None else np.asarray(task.goal_xy)
    far_enough: np.ndarray = np.linalg.norm(rand_vecs[:, :2] - goal_xy, axis=1) >= task.too_near
    return far_enough


def draw(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw ``num`` starts of the reset law, rejection included, many at a time; float64 (num, 3 or 6)."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((0, len(task.low)))
    while len(drawn) < num:
        batch = rng.uniform(task.low, task.high, (2 * num, len(task.low)))
        drawn = np.concatenate([drawn, batch[accepted(task, batch)]])
    return drawn[:num]


@functools.cache
def reference_init_states(task: Task, num: int = NUM_REFERENCE) -> np.ndarray:
    """Return ``num`` starts that stand for the reset law, the same ones every time; float64 (num, 3 or 6)."""
    return draw(task, num, _REFERENCE_SEED)


def scale(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Return the informative dimensions of starts, in widths of the reset box: (…, D)."""
    dims = task.informative
    scaled: np.ndarray = (rand_vecs[..., dims] - np.asarray(task.low)[dims]) / task.width[dims]
    return scaled


def count_distinct(rand_vecs: np.ndarray) -> int:
    """Count the distinct starts of (N, 3 or 6), as :func:`~act_kit.sim.initial_states.distinct` does, but of many at once."""
    rows = np.unique(rand_vecs, axis=0)
    if len(rows) < 2:
        return len(rows)
    is_alone = cKDTree(rows).query(rows, k=2, p=np.inf)[0][:, 1] > SAME_INIT_STATE_M
    return int(is_alone.sum()) + len(distinct(rows[~is_alone]))


class ReferenceSet:
    """M starts, scaled, and what datasets are measured by against them.

    Every statistic grows as a dataset gets worse. Of each dimension: ``range`` and ``std`` (how much narrower), ``ks``
    (Kolmogorov-Smirnov); of all together: ``energy`` (Székely and Rizzo 2004), ``rank`` (effective rank of the
    correlations, negative), ``correlation`` (the largest difference of a pair's).
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
    def gates(self) -> list[tuple[str, int]]:
        """Name the G statistics, in order, each with its dimension (-1 for all together)."""
        dims = range(self.y_MD.shape[1])
        each = [(name, dim) for name in ("range", "std", "ks") for dim in dims]
        return [*each, *((name, -1) for name in ("energy", "rank", "correlation"))]

    def share_below(self, x_ND: np.ndarray) -> np.ndarray:
        """Return of every number of x the share of Y that is not above it: (N, D)."""
        columns = zip(self._sorted_MD.T, x_ND.T, strict=True)
        return np.stack([np.searchsorted(y, x, "right") for y, x in columns], axis=1) / len(self.y_MD)

    def measure(self, x_BND: np.ndarray, share_BND: np.ndarray, towards_BN: np.ndarray) -> np.ndarray:
        """Return the statistics of B datasets, (B, G).

        ``share_BND`` is :meth:`share_below` of them, ``towards_BN`` the mean distance of each start to those of Y.
        """
        num = x_BND.shape[1]
        steps = np.arange(num + 1)[None, :, None] / num
        share = np.sort(share_BND, axis=1)
        ks = np.maximum(np.abs(steps[:, 1:] - share), np.abs(share - steps[:, :-1])).max(axis=1)
        paired = x_BND[:, :_MOST_PAIRED]
        between = np.array([2 * pdist(x).sum() for x in paired]) / paired.shape[1] ** 2
        energy = 2 * towards_BN[:, :_MOST_PAIRED].mean(axis=1) - between - self._within
        correlation = correlations(x_BND)
        differences = np.abs(correlation - self.correlation_DD)
        differences *= 1 - np.eye(differences.shape[-1])
        return np.concatenate(
            [
                -ratio(np.ptp(x_BND, axis=1), self.range_D),
                -ratio(x_BND.std(axis=1), self.std_D),
                ks,
                np.stack([energy, -effective_rank(correlation), differences.max(axis=(1, 2))], axis=1),
            ],
            axis=1,
        )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; where Y does not vary (an evaluation set may be so), nothing is asked of X, and 1 is returned."""
    varies = denominator > 1e-9
    quotient: np.ndarray = np.where(varies, numerator / np.where(varies, denominator, 1), 1.0)
    return quotient


def correlations(x_ND: np.ndarray) -> np.ndarray:
    """Return correlation matrices (…, D, D) of (…, N, D); rows of a dimension that does not vary are zero."""
    centered = x_ND - x_ND.mean(axis=-2, keepdims=True)
    spread = centered.std(axis=-2, keepdims=True)
    unit = np.where(spread > 1e-9, centered / np.maximum(spread, 1e-9), 0.0)
    matrices: np.ndarray = np.swapaxes(unit, -1, -2) @ unit / x_ND.shape[-2]
    return matrices


def effective_rank(correlation_DD: np.ndarray) -> np.ndarray:
    """Return exp(entropy) of the normalised eigenvalues: D if uncorrelated (Roy and Vetterli 2007), shape (…)."""
    eigenvalues = np.clip(np.linalg.eigvalsh(correlation_DD), 1e-12, None)
    shares = eigenvalues / eigenvalues.sum(axis=-1, keepdims=True)
    rank: np.ndarray = np.exp(-(shares * np.log(shares)).sum(axis=-1))
    return rank


@dataclass(frozen=True)
class Distribution:
    """The distribution of some statistics over healthy datasets, float32 (B, G), by which others are judged."""

    values: np.ndarray

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(self.values, axis=0)

    @functools.cached_property
    def _least(self) -> np.ndarray:
        """The least p-value of each simulated dataset's statistics, sorted, (B,)."""
        return np.sort(self._p_values(self.values).min(axis=1))

    def _p_values(self, values: np.ndarray) -> np.ndarray:
        columns = zip(self._sorted.T, values.T, strict=True)
        below = np.stack([np.searchsorted(reference, value, "left") for reference, value in columns], axis=-1)
        p_values: np.ndarray = (len(self.values) - below) / (1 + len(self.values))
        return p_values

    def p_values(self, values: np.ndarray) -> np.ndarray:
        """Return each statistic's p-value, at least 1 / (B + 1); (…, G)."""
        return self._p_values(values.astype(np.float32)) + 1 / (1 + len(self.values))

    def familywise(self, values: np.ndarray) -> np.ndarray:
        """Return each statistic's p-value adjusted for all of them, by their least (Westfall and Young 1993)."""
        as_low = np.searchsorted(self._least, self.p_values(values) * (1 + 1e-9), "right")
        adjusted: np.ndarray = (1 + as_low) / (1 + len(self._least))
        return adjusted


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """What is measured of healthy datasets of N starts.

    Attributes:
        values: float32 (B, G + 1): the statistics of :class:`ReferenceSet`, then ``beyond``.
        hole_values: float32 (B, 4): those of :class:`~act_kit.diversity.holes.HoleScan`.
        nearest: Means over healthy datasets of what their distances from Y to the nearest start are in the mean, at
            the 95th percentile and at most, in box widths; (3,).
        nearest_p99: The 99th percentile of all those distances.
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
        """The distribution of ``hole_values``: a family of its own, with a chance of its own to alarm."""
        return Distribution(self.hole_values)


class Pool:
    """Many starts of a task's reset law, scaled, that datasets are drawn from: cheaper than drawing each anew."""

    def __init__(self, task: Task, num: int, y_MD: np.ndarray, seed: int) -> None:
        """Draw many times ``num``, to hold them against Y."""
        self.yardstick = ReferenceSet(y_MD)
        self.x = scale(task, draw(task, int(np.clip(50 * num, 4000, 20000)), seed))
        self.share = self.yardstick.share_below(self.x)
        self.distances = np.empty((len(self.x), len(y_MD)), dtype=np.float32)
        for begin in range(0, len(self.x), 2000):
            self.distances[begin : begin + 2000] = cdist(self.x[begin : begin + 2000], y_MD)

    def nearest(self, rows_BN: np.ndarray) -> np.ndarray:
        """Return the distance from each of Y to the nearest of each dataset: (B, M)."""
        return np.stack([self.distances[rows].min(axis=0) for rows in rows_BN])

    def hole_values(self, rows_BN: np.ndarray, nearest_BM: np.ndarray) -> np.ndarray:
        """Return the statistics of the scans for holes: (B, 4)."""
        return self.yardstick.holes.measure(self.x[rows_BN], self.share[rows_BN], nearest_BM)


def simulate(task: Task, num: int, y_MD: np.ndarray, *, seed: int = _POOL_SEED) -> ReferenceStatistics:
    """Draw healthy datasets of ``num`` starts and measure them against Y, scaled (M, D)."""
    rng = np.random.default_rng(seed)
    pool = Pool(task, num, y_MD, seed)
    yardstick, towards = pool.yardstick, pool.distances.mean(axis=1)
    values: list[np.ndarray] = []
    holes: list[np.ndarray] = []
    nearest: list[np.ndarray] = []
    while sum(map(len, values)) < NUM_SIMULATED:
        # Every start of the pool once, then again in another order: cheaper than drawing, and nearly independent.
        chosen = rng.permutation(len(pool.x))[: len(pool.x) // num * num].reshape(-1, num)
        for part in np.array_split(chosen, -(-chosen.size // 40000)):
            nearest.append(pool.nearest(part))
            holes.append(pool.hole_values(part, nearest[-1]))
            values.append(yardstick.measure(pool.x[part], pool.share[part], towards[part]))
            if sum(map(len, values)) >= NUM_SIMULATED:
                break
    nearest_BM, values_BG = np.concatenate(nearest), np.concatenate(values)
    p99 = np.percentile(nearest_BM, 99)
    beyond = (nearest_BM > p99).mean(axis=1)
    return ReferenceStatistics(
        values=np.column_stack([values_BG, beyond]).astype(np.float32),
        hole_values=np.concatenate(holes).astype(np.float32),
        nearest=np.array(
            [nearest_BM.mean(), np.percentile(nearest_BM, 95, axis=1).mean(), nearest_BM.max(axis=1).mean()]
        ),
        nearest_p99=p99,
        rank=-values_BG[:, [name for name, _ in yardstick.gates].index("rank")].mean(),
    )


@functools.lru_cache(maxsize=64)
def reference_statistics_of(task: Task, num: int) -> ReferenceStatistics:
    """Return what ``num`` starts of the reset law look like against the reset law itself."""
    return reference_statistics_against(task, num, scale(task, reference_init_states(task)))


def distribution_of(task: Task, y_MD: np.ndarray) -> tuple[object, ...]:
    """Return what a simulation against Y depends on, beside the number of starts."""
    y_hash = hashlib.sha256(np.ascontiguousarray(y_MD).tobytes()).hexdigest()
    return VERSION, NUM_SIMULATED, task, _POOL_SEED, y_hash


def reference_statistics_against(task: Task, num: int, y_MD: np.ndarray) -> ReferenceStatistics:
    """Return :func:`simulate`'s result from the user's cache, where it is put if it is not there."""
    distribution = distribution_of(task, y_MD)
    names = [field.name for field in fields(ReferenceStatistics)]
    return ReferenceStatistics(
        **cached(f"null-{task.name}-{num}", distribution, names, lambda: vars(simulate(task, num, y_MD)))
    )


def cache_folder() -> Path:
    """Return the folder of what can be computed again: ``ACT_KIT_CACHE``, or ``act_kit`` in the user's cache.

    A user without a home has one among the temporary files.
    """
    if os.environ.get("ACT_KIT_CACHE"):
        return Path(os.environ["ACT_KIT_CACHE"])
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no entry of this user among those of the system
        return Path(tempfile.gettempdir()) / f"act_kit-{os.getuid()}"
    return home / "act_kit"


def cached(name: str, key: object, arrays: list[str], compute: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return ``arrays`` as ``compute`` makes them, from a file of the cache if it holds them for this ``key``.

    A cache that cannot be read or written, or was damaged, costs time, and is no error.
    """
    path = cache_folder() / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CACHE_BYTES:
            raise OSError("nothing, or nothing of ours")
        with path.open("rb") as file, np.load(file) as kept:
            if sum(part.file_size for part in kept.zip.infolist()) > _MAX_CACHE_BYTES:
                raise OSError("nothing of ours")
            read = {key: kept[key] for key in arrays}
            if str(kept["digest"]) != _digest(read):
                raise ValueError("changed since")
            return read
    except Exception:  # missing, torn, foreign: NumPy raises many things
        values = compute()
        made = {key: np.asarray(values[key]) for key in arrays}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".partial") as fresh:
            np.savez(Path(fresh) / path.name, digest=_digest(made), **made)  # type: ignore[arg-type]
            os.replace(Path(fresh) / path.name, path)
    except OSError:
        pass
    return made


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
