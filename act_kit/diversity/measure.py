"""Measurement of a dataset: coverage of the evaluated initial states, integrity of the data, quality, sources.

The demonstrated initial states X are compared with the evaluated initial states Y (1,000 draws from the task's
distribution, unless an evaluation set is given) in the informative dimensions, scaled by the width of the reset box. No
single test suffices: with one of five dimensions frozen, 50 demonstrations pass an energy test nine times in ten and a
Kolmogorov-Smirnov test never; two correlated dimensions are only detected by the correlation. So several statistics are
tested, each with a minimum effect size; a healthy dataset exceeds any of them with a probability below 1.5 %
(:mod:`act_kit.diversity.reference`). The verdict is the worst of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from act_kit.datasets.split import NEAR_COPY, SPLIT_SEED, VAL_FRACTION, split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.holes import SCANS
from act_kit.diversity.integrity import Finding, check_init_states, check_numbers
from act_kit.diversity.power import visible_holes
from act_kit.diversity.quality import measure_quality
from act_kit.diversity.reference import (
    ALPHA,
    ALPHA_HOLES,
    MAX_INIT_STATES,
    ReferenceSet,
    accepted,
    correlations,
    count_distinct,
    draw,
    reference_init_states,
    reference_statistics_against,
    reference_statistics_of,
)
from act_kit.diversity.result import Dimension, DiversityReport, ScalingPoint
from act_kit.diversity.sources import measure_sources
from act_kit.diversity.verdict import TOO_FEW, coverage_findings, skipped_statistics
from act_kit.errors import DatasetError
from act_kit.files import quoted
from act_kit.sim.initial_states import SAME_INIT_STATE_M, distinct, scale
from act_kit.sim.tasks import Task, get_task
from act_kit.statistics import holm

# Shapes: N demonstrated initial states, M evaluated initial states, D informative dimensions, G statistics.

_COPY_M = 1e-9
"""Largest distance between copies; in one dimension, a few of a thousand agree by chance to a micrometer."""
_MAX_SCALING_SIZE = 3000
"""Largest dataset for which the scaling curve is computed."""
_NUM_SCALING_DRAWS = 8
"""Number of random draws that each point of the scaling curve averages."""


def measure_diversity(store: EpisodeStore, *, against: np.ndarray | None = None) -> DiversityReport:
    """Measure a dataset: coverage (see :func:`measure_init_states`), integrity, quality and sources.

    Raises:
        DatasetError: The dataset is empty, or its initial states do not have the number or the size that they should.
    """
    task = get_task(store.info.task)
    init_states = store.rand_vecs
    if not store.num_episodes:
        raise DatasetError(
            f"{store.path} contains no demonstrations. Fix: {store.info.command} --out {quoted(store.path)} --resume"
        )
    if init_states.shape != (store.num_episodes, len(task.low)):
        raise DatasetError(
            f"{store.path} has initial states of shape {init_states.shape}: expected "
            f"{(store.num_episodes, len(task.low))} for {store.num_episodes} demonstrations of {task.name}. It was "
            "edited. Fix: collect it again."
        )
    is_edited = store.fingerprint is not None and store.fingerprint != store.compute_fingerprint()
    episodes = store.episodes()
    # In three tasks the expert ignores the goal: equal actions from distinct initial states are not copies.
    trajectories = [episode.state.tobytes() + episode.action.tobytes() for episode in episodes]
    num_failed = sum(not attempt.kept for attempt in store.attempts())
    diversity = measure_init_states(task, init_states, against=against, num_failed=num_failed)
    num_validation, num_leaked = _count_leaked(store, trajectories)
    findings = [*check_numbers(episodes), *check_init_states(task, episodes), *diversity.findings]
    if num_leaked and diversity.num_distinct > 1:
        text = (
            f"{num_leaked} of the {num_validation} validation demonstrations of act train repeat a training "
            "demonstration: the validation loss is too low."
        )
        findings.append(Finding(level="WARN", text=text, about="coverage"))
    if is_edited:
        text = "the content does not match its fingerprint: it was edited after collection."
        findings.append(Finding(level="WARN", text=text))
    return replace(
        diversity,
        duplicate_trajectories=1 - len({episode.action.tobytes() for episode in episodes}) / len(episodes),
        scaling=_scaling(task, init_states, against),
        sources=measure_sources(task, init_states, store.sources, store.success_steps >= 0, against),
        quality=measure_quality(episodes),
        num_validation=num_validation,
        num_leaked=num_leaked,
        findings=findings,
    )


def measure_init_states(
    task: Task, rand_vecs: np.ndarray, *, against: np.ndarray | None = None, num_failed: int = 0
) -> DiversityReport:
    """Measure how well initial states (N, 3 or 6) cover the task's distribution, or ``against``, (M, 3 or 6)."""
    num, num_sampled = len(rand_vecs), min(len(rand_vecs), MAX_INIT_STATES)
    finite = rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    if not len(finite):
        raise DatasetError(
            f"None of the {num} initial states of {task.name} is finite. Fix: collect the dataset again."
        )
    inside = finite[is_inside(task, finite)]
    x = scale(task, _sample(inside if len(inside) else finite, len(inside) * num_sampled // num))
    y = scale(task, reference_init_states(task) if against is None else against)
    reference = (
        reference_statistics_of(task, num_sampled)
        if against is None
        else reference_statistics_against(task, num_sampled, y)
    )
    reference_set = ReferenceSet(y)
    distances = cdist(x, y)
    nearest = distances.min(axis=0)
    summary = np.array([nearest.mean(), np.percentile(nearest, 95), nearest.max()])
    beyond = float((nearest > reference.nearest_p99).mean())
    share = reference_set.share_below(x)
    measured = reference_set.measure(x[None], share[None], distances.mean(axis=1)[None])[0]
    values = np.append(measured, beyond)
    p_values = dict(zip(reference_set.statistics, reference.coverage.p_values(values), strict=False))
    by_statistic = dict(zip(reference_set.statistics, measured.tolist(), strict=True))
    ks_p = holm(np.array([p_values["ks", i] for i in range(x.shape[1])]))
    dimensions = [
        Dimension(
            name=task.dim_name(int(dim)),
            range_fraction=-by_statistic["range", i],
            std_ratio=-by_statistic["std", i],
            ks_p=float(ks_p[i]),
            shift=float(wasserstein_distance(x[:, i], y[:, i])),
        )
        for i, dim in enumerate(task.informative)
    ]
    differences = np.triu(np.abs(correlations(x) - reference_set.correlation_DD), 1)
    first, second = np.unravel_index(differences.argmax(), differences.shape)
    num_distinct = count_distinct(finite)
    diversity = DiversityReport(
        task=task.name,
        against=(
            f"the initial states of {task.name}"
            if against is None
            else f"the {len(against)} initial states of the evaluation set"
        ),
        num=num,
        num_distinct=num_distinct,
        num_outside=num - len(inside),
        num_shared=0 if against is None else int(np.sum(_distance_to(against, finite) <= SAME_INIT_STATE_M)),
        duplicate_fraction=1 - num_distinct / len(finite),
        num_apart=len(distinct(scale(task, finite), NEAR_COPY)),
        duplicate_trajectories=0.0,
        num_attempts=num + num_failed,
        num_failed=num_failed,
        dimensions=dimensions,
        nearest_mean=float(summary[0]),
        nearest_p95=float(summary[1]),
        nearest_max=float(summary[2]),
        nearest_ratio=float(summary[0] / reference.nearest[0]),
        nearest_p95_ratio=float(summary[1] / reference.nearest[1]),
        nearest_max_ratio=float(summary[2] / reference.nearest[2]),
        beyond_p99=beyond,
        energy_distance=by_statistic["energy", -1],
        energy_p=float(p_values["energy", -1]),
        effective_rank=-by_statistic["rank", -1],
        effective_rank_reference=float(reference.rank),
        correlation=float(differences.max()),
        correlated=(dimensions[first].name, dimensions[second].name) if len(dimensions) > 1 else None,
        notes=[],
        findings=[],
        fix=f"act collect --task {task.name} --randomize --n {max(num, 50)}",
    )
    familywise = reference.coverage.familywise(values)
    names = [*reference_set.statistics, ("beyond", -1)]
    significant = {name for name, p in zip(names, familywise, strict=True) if p <= ALPHA}
    hole_p = reference.holes.familywise(reference_set.holes.measure(x[None], share[None], nearest[None])[0])
    holes = {
        scan: reference_set.holes.describe(scan, task, x, share, nearest)
        for scan, p in zip(SCANS, hole_p, strict=True)
        if p <= ALPHA_HOLES
    }
    skipped, notes = skipped_statistics(task, diversity, against)
    if num >= TOO_FEW and ("holes", -1) not in skipped:
        diversity = replace(diversity, visible_holes=visible_holes(task, num_sampled, y, reference))
        notes.append(diversity.could_see)
    findings = coverage_findings(diversity, count_distinct(inside), significant - skipped, skipped, holes)
    return replace(diversity, notes=notes, findings=findings)


def is_inside(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Return which finite initial states lie in the task's distribution, bool (N,)."""
    above = rand_vecs >= np.subtract(task.low, SAME_INIT_STATE_M)
    below = rand_vecs <= np.add(task.high, SAME_INIT_STATE_M)
    inside: np.ndarray = (above & below).all(axis=1) & accepted(task, rand_vecs)
    return inside


def _sample(init_states: np.ndarray, num: int) -> np.ndarray:
    """Return a fixed random sample of ``num`` initial states, or all if there are not more."""
    order = np.random.default_rng(0).permutation(len(init_states))
    return init_states[order[: max(1, num)]]


def _distance_to(init_states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the maximum-norm distance from each of ``others`` to the nearest of ``init_states``."""
    distances: np.ndarray = cKDTree(init_states).query(others, p=np.inf)[0]
    return distances


def _count_leaked(store: EpisodeStore, trajectories: list[bytes]) -> tuple[int, int]:
    """Count the validation episodes, and those whose initial state or trajectory is also in a training episode."""
    if store.num_episodes < 2:
        return 0, 0
    ((train, val),) = split_stores([store], VAL_FRACTION, SPLIT_SEED)
    training = {trajectories[i] for i in train}
    init_states = np.nan_to_num(store.rand_vecs, posinf=0, neginf=0)
    near = _distance_to(init_states[train], init_states[val]) <= _COPY_M
    return len(val), sum(bool(copied) or trajectories[i] in training for i, copied in zip(val, near, strict=True))


def _scaling(task: Task, rand_vecs: np.ndarray, against: np.ndarray | None) -> list[ScalingPoint]:
    """Return the scaling curve from a quarter to four times the number of demonstrations.

    It is empty for thousands of demonstrations.
    """
    num, inside = len(rand_vecs), rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    inside = inside[is_inside(task, inside)]
    if not len(inside) or num > _MAX_SCALING_SIZE:
        return []
    y = scale(task, reference_init_states(task) if against is None else against)
    curve = []
    for size in sorted({max(1, num // 4), max(1, num // 2), num, 2 * num, 4 * num}):
        num_own = max(1, len(inside) * min(size, num) // num)
        distances = np.empty((2, _NUM_SCALING_DRAWS))
        for i in range(_NUM_SCALING_DRAWS):
            random = scale(task, draw(task, size, seed=i))
            own = scale(task, np.random.default_rng(i).permutation(inside)[:num_own])
            for k, init_states in enumerate((np.concatenate([own, random[: max(0, size - num)]]), random)):
                distances[k, i] = cKDTree(init_states).query(y)[0].mean()
        nearest, nearest_random = distances.mean(axis=1)
        curve.append(ScalingPoint(num=size, nearest=float(nearest), nearest_random=float(nearest_random)))
    return curve
