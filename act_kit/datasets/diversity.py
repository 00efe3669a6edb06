"""Do the demonstrated starts cover the starts that the policy will be evaluated from?

The demonstrated starts X are held against 1,000 starts Y of the benchmark's reset law, on the dimensions that vary,
scaled by the width of the reset box. No single test suffices: with one of five dimensions frozen, 50 demonstrations
pass an energy test nine times in ten, and a Kolmogorov-Smirnov test never; with two dimensions correlated it is the
effective rank that shows it. So several gates are read, and the worst of them is the verdict.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, wasserstein_distance

from act_kit.datasets.store import EpisodeStore
from act_kit.sim.starts import StartLaw, distinct, stack
from act_kit.sim.tasks import Task, get_task

# Shapes: N demonstrated starts, M reference starts, D informative dimensions.

Level = Literal["OK", "WARN", "FAIL"]

NUM_REFERENCE = 1000
_NUM_FRESH = 20
"""Fresh draws of N starts to which coverage is compared."""
_NUM_PERMUTATIONS = 1999
_REFERENCE_SEED = 20230413
TOO_FEW = 10


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One informative dimension of the start.

    Attributes:
        name: Such as ``object x``.
        range_fraction: Range of X / range of Y.
        std_ratio: Standard deviation of X / of Y.
        ks_p: Kolmogorov-Smirnov p-value, Holm-adjusted over the dimensions.
        shift: Wasserstein distance / width of the reset interval.
    """

    name: str
    range_fraction: float
    std_ratio: float
    ks_p: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong, in a sentence."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How well N demonstrated starts cover the reset law.

    Attributes:
        task: Meta-World task.
        num: N.
        num_distinct: Starts that differ by more than 1e-6 m somewhere.
        duplicate_fraction: Of the starts, those that repeat an earlier one.
        duplicate_trajectories: Of the episodes, those whose actions repeat an earlier one's to the bit.
        num_attempts, num_failed: Attempts of the collection; failed ones leave holes.
        dimensions: One row per informative dimension.
        nearest_mean, nearest_p95, nearest_max: Distance from Y to the nearest of X, in box widths.
        nearest_ratio: ``nearest_mean`` / that of N fresh draws; 1 is what random starts reach.
        beyond_p99: Of Y, those farther from X than 99 % are from N fresh draws.
        energy_distance, energy_p: Székely's two-sample statistic, and its permutation p-value.
        effective_rank, effective_rank_reference: Of the correlation matrix, X and Y.
        findings: What is wrong.
        mend: The command that collects a dataset without these findings.
    """

    task: str
    num: int
    num_distinct: int
    duplicate_fraction: float
    duplicate_trajectories: float
    num_attempts: int
    num_failed: int
    dimensions: list[Dimension]
    nearest_mean: float
    nearest_p95: float
    nearest_max: float
    nearest_ratio: float
    beyond_p99: float
    energy_distance: float
    energy_p: float
    effective_rank: float
    effective_rank_reference: float
    findings: list[Finding]
    mend: str

    @property
    def level(self) -> Level:
        """The worst finding's level."""
        levels = [finding.level for finding in self.findings]
        return "FAIL" if "FAIL" in levels else "WARN" if "WARN" in levels else "OK"

    @property
    def verdict(self) -> str:
        """The verdict as a sentence, with what mends it."""
        if self.level == "OK":
            return (
                f"OK: {self.num} demonstrations from {self.num_distinct} distinct starts cover the starts of "
                f"{self.task} as well as {self.num} random draws do."
            )
        worst = " ".join(finding.text for finding in self.findings if finding.level == self.level)
        return f"{self.level}: {worst} To mend it: {self.mend}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything, the verdict included, for JSON."""
        return {"level": self.level, "verdict": self.verdict, **asdict(self)}


@functools.cache
def reference_starts(task: str, num: int) -> np.ndarray:
    """Draw ``num`` starts of the benchmark's reset law, the same ones every time; float64 (num, 3 or 6)."""
    return stack(StartLaw(task).sample(num, seed=_REFERENCE_SEED, stream="reference"))


def measure(store: EpisodeStore) -> Diversity:
    """Measure a dataset; see :func:`measure_starts`."""
    actions = np.split(store.steps("action"), store.episode_ends[:-1])
    num_failed = sum(not attempt.kept for attempt in store.attempts())
    return measure_starts(
        get_task(store.info.task),
        store.rand_vecs,
        duplicate_trajectories=1 - len({chunk.tobytes() for chunk in actions}) / max(1, store.num_episodes),
        num_failed=num_failed,
    )


def measure_starts(
    task: Task, rand_vecs: np.ndarray, *, duplicate_trajectories: float = 0.0, num_failed: int = 0
) -> Diversity:
    """Measure how well demonstrated starts (N, 3 or 6) cover the task's reset law."""
    num, dims = len(rand_vecs), task.informative
    drawn = reference_starts(task.name, NUM_REFERENCE + _NUM_FRESH * num)
    x, drawn = _scale(task, rand_vecs), _scale(task, drawn)
    y, fresh = drawn[:NUM_REFERENCE], drawn[NUM_REFERENCE:].reshape(_NUM_FRESH, num, len(dims))
    nearest = _nearest(y, x)
    nearest_fresh = np.stack([_nearest(y, draw) for draw in fresh])
    energy_distance, energy_p = energy_test(x, y)
    num_distinct = len(distinct(rand_vecs))
    diversity = Diversity(
        task=task.name,
        num=num,
        num_distinct=num_distinct,
        duplicate_fraction=1 - num_distinct / num,
        duplicate_trajectories=duplicate_trajectories,
        num_attempts=num + num_failed,
        num_failed=num_failed,
        dimensions=_dimensions(task, x, y),
        nearest_mean=float(nearest.mean()),
        nearest_p95=float(np.percentile(nearest, 95)),
        nearest_max=float(nearest.max()),
        nearest_ratio=float(nearest.mean() / nearest_fresh.mean()),
        beyond_p99=float((nearest > np.percentile(nearest_fresh, 99)).mean()),
        energy_distance=energy_distance,
        energy_p=energy_p,
        effective_rank=effective_rank(x),
        effective_rank_reference=effective_rank(y),
        findings=[],
        mend=f"act collect --task {task.name} --randomize --n {max(num, 50)}",
    )
    return replace(diversity, findings=_judge(diversity))


def _scale(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    dims = task.informative
    scaled: np.ndarray = (rand_vecs[:, dims] - np.asarray(task.low)[dims]) / task.width[dims]
    return scaled


def _nearest(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    distances: np.ndarray = cKDTree(x).query(y)[0]
    return distances


def _dimensions(task: Task, x: np.ndarray, y: np.ndarray) -> list[Dimension]:
    p_values = np.array([ks_2samp(x[:, i], y[:, i]).pvalue for i in range(x.shape[1])])
    adjusted = holm(p_values)
    return [
        Dimension(
            name=task.dim_name(int(dim)),
            range_fraction=float(np.ptp(x[:, i]) / np.ptp(y[:, i])),
            std_ratio=float(x[:, i].std() / y[:, i].std()),
            ks_p=float(adjusted[i]),
            shift=float(wasserstein_distance(x[:, i], y[:, i])),
        )
        for i, dim in enumerate(task.informative)
    ]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for multiple tests (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def energy_test(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the energy distance of x (N, D) and y (M, D), and its permutation p-value (Székely and Rizzo 2004)."""
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([x, y])
    distances = cdist(pooled, pooled)
    labels = np.zeros((1 + _NUM_PERMUTATIONS, len(pooled)))
    labels[0, : len(x)] = 1
    for row in labels[1:]:
        row[rng.choice(len(pooled), len(x), replace=False)] = 1
    to_x = labels @ distances
    n, m = len(x), len(y)
    xx = (to_x * labels).sum(axis=1)
    xy = (to_x * (1 - labels)).sum(axis=1)
    yy = distances.sum() - xx - 2 * xy
    statistic = 2 * xy / (n * m) - xx / n**2 - yy / m**2
    p_value = (1 + (statistic[1:] >= statistic[0]).sum()) / (1 + _NUM_PERMUTATIONS)
    return float(statistic[0]), float(p_value)


def effective_rank(x: np.ndarray) -> float:
    """Return exp(entropy) of the correlation matrix's normalised eigenvalues: D if uncorrelated (Roy, Vetterli 2007).

    A dimension that does not vary counts as none.
    """
    varying = x[:, np.ptp(x, axis=0) > 1e-9]
    if len(varying) < 2 or varying.shape[1] == 0:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(varying, rowvar=False)))
    shares = np.clip(eigenvalues, 1e-12, None) / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _judge(d: Diversity) -> list[Finding]:
    """Read the gates; their thresholds come from Monte-Carlo on the reset laws."""
    findings: list[Finding] = []

    def fail(text: str) -> None:
        findings.append(Finding(level="FAIL", text=text))

    def warn(text: str) -> None:
        findings.append(Finding(level="WARN", text=text))

    if d.num_distinct == 1 and d.num > 1:
        fail(
            f"all {d.num} demonstrations begin from one and the same start. A policy that learns from them has not "
            "seen any of the starts it will be evaluated from."
        )
        return findings
    if d.num >= TOO_FEW and d.num_distinct < max(5, 0.05 * d.num):
        fail(f"the {d.num} demonstrations begin from only {d.num_distinct} distinct starts.")
    if d.num < TOO_FEW:
        warn(f"{d.num} demonstrations are too few to judge their coverage.")
        return findings
    frozen = [row.name for row in d.dimensions if row.range_fraction < 0.05]
    if frozen:
        fail(f"{', '.join(frozen)} hardly varies: less than 5 % of the range it is evaluated on.")
    if d.energy_p <= 0.001 and d.nearest_ratio > (2.0 if len(d.dimensions) <= 3 else 1.5):
        fail(
            f"the starts leave much of the task uncovered: a fresh start is {d.nearest_ratio:.1f} times as far from the "
            f"nearest demonstration as with {d.num} random starts (energy test p = {d.energy_p:.4f})."
        )
    large = d.num >= 50
    if d.num >= 20:
        low_range, low_std = (0.8, 0.75) if large else (0.6, 0.6)
        for row in d.dimensions:
            if row.name in frozen:
                continue
            if row.range_fraction < low_range:
                warn(f"{row.name} covers only {100 * row.range_fraction:.0f} % of its range.")
            elif row.std_ratio < low_std:
                warn(f"{row.name} varies only {100 * row.std_ratio:.0f} % as much as it will in evaluation.")
        rank_ratio = d.effective_rank / d.effective_rank_reference
        if rank_ratio < 0.85 and not frozen:
            warn(f"dimensions vary together: effective rank {d.effective_rank:.1f}, not {d.effective_rank_reference:.1f}.")
    if d.duplicate_fraction > 0.02:
        warn(f"{100 * d.duplicate_fraction:.0f} % of the demonstrations repeat the start of another.")
    for row in d.dimensions:
        if row.ks_p < 0.001 and row.shift > 0.05 and row.name not in frozen:
            warn(f"{row.name} is distributed otherwise than in evaluation (Kolmogorov-Smirnov p = {row.ks_p:.1g}).")
    if d.beyond_p99 > 0.05:
        warn(f"{100 * d.beyond_p99:.0f} % of fresh starts are farther from a demonstration than 1 % should be.")
    return findings
