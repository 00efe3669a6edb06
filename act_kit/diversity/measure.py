"""Measurement of a dataset: coverage of the evaluated initial states, integrity of the data, quality, sources.

The demonstrated initial states X are compared with the evaluated initial states Y (1,000 draws from the task's
distribution, unless an evaluation set is given) in the informative dimensions, scaled by the width of the reset box. No
single test suffices: with one of five dimensions frozen, 50 demonstrations pass an energy test nine times in ten and a
Kolmogorov-Smirnov test never; two correlated dimensions are only detected by the correlation. So several statistics are
tested, each with a minimum effect size; a healthy dataset exceeds any of them with a probability below 1.5 %
(:mod:`act_kit.diversity.reference`). The verdict is the worst of them.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from act_kit.datasets.split import NEAR_COPY, SPLIT_SEED, VAL_FRACTION, split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity import reference
from act_kit.diversity.conflict import find_conflict
from act_kit.diversity.holes import SCANS
from act_kit.diversity.integrity import Finding, check_init_states, check_numbers
from act_kit.diversity.power import visible_holes
from act_kit.diversity.quality import duplicate_fraction, measure_quality, trajectories
from act_kit.diversity.reference import count_distinct, distance_to_nearest
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
    num, expected = store.num_episodes, (store.num_episodes, len(task.low))
    if not num:
        fix = f"{store.info.command} --out {quoted(store.path)} --resume"
        raise DatasetError(f"{store.path} contains no demonstrations. Fix: {fix}")
    if init_states.shape != expected:
        problem = f"initial states of shape {init_states.shape}: expected {expected}"
        raise DatasetError(
            f"{store.path} has {problem} for {num} demonstrations of {task.name}. It was edited. Fix: collect it again."
        )
    episodes = store.episodes()
    num_failed = len(store.failed_rand_vecs)
    diversity = measure_init_states(task, init_states, against=against, num_failed=num_failed)
    # In three tasks the expert ignores the goal: equal actions from distinct initial states are not copies.
    num_validation, num_leaked = _count_leaked(store, trajectories(episodes))
    findings = [*check_numbers(episodes), *check_init_states(task, episodes), *diversity.findings]
    if num_leaked and diversity.num_distinct > 1:
        text = (
            f"{num_leaked} of the {num_validation} validation demonstrations of act train repeat a training "
            "demonstration: the validation loss is too low."
        )
        findings.append(Finding(level="WARN", text=text, about="coverage"))
    conflict = find_conflict(episodes)
    if conflict:
        text = (
            f"{conflict}: trained with an L1, a policy may act between them. Fix: train policy=flow_small, which can "
            "represent both, or keep the demonstrations of one way."
        )
        findings.append(Finding(level="WARN", text=text, about="demonstrations"))
    return replace(
        diversity,
        duplicate_trajectories=duplicate_fraction(trajectories(episodes, ("action",))),
        scaling=_scaling(task, init_states, against),
        sources=measure_sources(task, init_states, store.sources, store.success_steps >= 0, against),
        quality=measure_quality(episodes),
        num_validation=num_validation,
        num_leaked=num_leaked,
        conflict=conflict,
        findings=[*findings, *fingerprint_findings(store, "collection")],
    )


def fingerprint_findings(store: EpisodeStore, since: str) -> list[Finding]:
    """Return a finding if the content of a dataset was edited ``since``."""
    if store.fingerprint is None or store.fingerprint == store.compute_fingerprint():
        return []
    return [Finding(level="WARN", text=f"the content does not match its fingerprint: it was edited after {since}.")]


def measure_init_states(
    task: Task, rand_vecs: np.ndarray, *, against: np.ndarray | None = None, num_failed: int = 0
) -> DiversityReport:
    """Measure how well initial states (N, 3 or 6) cover the task's distribution, or ``against``, (M, 3 or 6)."""
    num, num_sampled = len(rand_vecs), min(len(rand_vecs), reference.MAX_INIT_STATES)
    finite = rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    if not len(finite):
        raise DatasetError(f"None of the {num} initial states of {task.name} is finite. Fix: collect them again.")
    inside = finite[is_inside(task, finite)]
    num_distinct = count_distinct(finite)
    x = scale(task, _sample(inside if len(inside) else finite, len(inside) * num_sampled // num))
    if against is None:
        y = scale(task, reference.reference_init_states(task))
        healthy = reference.reference_statistics_of(task, num_sampled)
        evaluated, num_shared = f"the initial states of {task.name}", 0
    else:
        y = scale(task, against)
        healthy = reference.reference_statistics_against(task, num_sampled, y)
        evaluated = f"the {len(against)} initial states of the evaluation set"
        num_shared = int(np.sum(distance_to_nearest(against, finite, np.inf) <= SAME_INIT_STATE_M))
    reference_set = reference.ReferenceSet(y)
    distances = cdist(x, y)
    nearest = distances.min(axis=0)
    summary = np.array([nearest.mean(), np.percentile(nearest, 95), nearest.max()])
    beyond = float((nearest > healthy.nearest_p99).mean())
    share = reference_set.share_below(x)
    measured = reference_set.measure(x[None], share[None], distances.mean(axis=1)[None])[0]
    values = np.append(measured, beyond)
    names = [*reference_set.statistics, ("beyond", -1)]
    value_of = dict(zip(names, values.tolist(), strict=True))
    p_of = dict(zip(names, healthy.coverage.p_values(values).tolist(), strict=True))
    ks_p = holm(np.array([p_of["ks", i] for i in range(x.shape[1])]))
    dimensions = []
    for i, dim in enumerate(task.informative):
        ranges = {"range_fraction": -value_of["range", i], "std_ratio": -value_of["std", i]}
        shift = float(wasserstein_distance(x[:, i], y[:, i]))
        dimensions.append(Dimension(name=task.dim_name(int(dim)), ks_p=float(ks_p[i]), shift=shift, **ranges))
    differences = np.triu(np.abs(reference.correlations(x) - reference_set.correlation_DD), 1)
    first, second = np.unravel_index(differences.argmax(), differences.shape)
    nearest_mean, nearest_p95, nearest_max = summary.tolist()
    mean_ratio, p95_ratio, max_ratio = (summary / healthy.nearest).tolist()
    diversity = DiversityReport(
        task=task.name,
        against=evaluated,
        num=num,
        num_distinct=num_distinct,
        num_outside=num - len(inside),
        num_shared=num_shared,
        duplicate_fraction=1 - num_distinct / len(finite),
        num_apart=len(distinct(scale(task, finite), NEAR_COPY)),
        duplicate_trajectories=0.0,
        num_attempts=num + num_failed,
        num_failed=num_failed,
        dimensions=dimensions,
        nearest_mean=nearest_mean,
        nearest_p95=nearest_p95,
        nearest_max=nearest_max,
        nearest_ratio=mean_ratio,
        nearest_p95_ratio=p95_ratio,
        nearest_max_ratio=max_ratio,
        beyond_p99=beyond,
        energy_distance=value_of["energy", -1],
        energy_p=p_of["energy", -1],
        effective_rank=-value_of["rank", -1],
        effective_rank_reference=float(healthy.rank),
        correlation=float(differences.max()),
        correlated=(dimensions[first].name, dimensions[second].name) if len(dimensions) > 1 else None,
        notes=[],
        findings=[],
        fix=f"act collect --task {task.name} --randomize --n {max(num, 50)}",
    )
    is_significant = healthy.coverage.familywise(values) <= reference.ALPHA
    significant = set(itertools.compress(names, is_significant))
    scan = reference_set.holes
    is_hole = healthy.holes.familywise(scan.measure(x[None], share[None], nearest[None])[0]) <= reference.ALPHA_HOLES
    found = itertools.compress(SCANS, is_hole)
    holes = {kind: scan.describe(kind, task, x, share, nearest) for kind in found}
    skipped, notes = skipped_statistics(task, diversity, against)
    if num >= TOO_FEW and ("holes", -1) not in skipped:
        diversity = replace(diversity, visible_holes=visible_holes(task, num_sampled, y, healthy))
        notes.append(diversity.could_see)
    findings = coverage_findings(diversity, count_distinct(inside), significant - skipped, skipped, holes)
    return replace(diversity, notes=notes, findings=findings)


def is_inside(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Return which finite initial states lie in the task's distribution, bool (N,)."""
    above = rand_vecs >= np.subtract(task.low, SAME_INIT_STATE_M)
    below = rand_vecs <= np.add(task.high, SAME_INIT_STATE_M)
    return np.asarray((above & below).all(axis=1) & reference.accepted(task, rand_vecs))


def _sample(init_states: np.ndarray, num: int) -> np.ndarray:
    """Return a fixed random sample of ``num`` initial states, or all if there are not more."""
    order = np.random.default_rng(0).permutation(len(init_states))
    return init_states[order[: max(1, num)]]


def _count_leaked(store: EpisodeStore, parts: list[bytes]) -> tuple[int, int]:
    """Count the validation episodes, and those whose initial state or trajectory is also in a training episode."""
    if store.num_episodes < 2:
        return 0, 0
    ((train, val),) = split_stores([store], VAL_FRACTION, SPLIT_SEED)
    init_states = np.nan_to_num(store.rand_vecs, posinf=0, neginf=0)
    is_near = distance_to_nearest(init_states[train], init_states[val], np.inf) <= _COPY_M
    number = np.unique(np.array(parts, dtype=object), return_inverse=True)[1]
    return len(val), int(np.sum(is_near | np.isin(number[val], number[train])))


def _scaling(task: Task, rand_vecs: np.ndarray, against: np.ndarray | None) -> list[ScalingPoint]:
    """Return the scaling curve from a quarter to four times the number of demonstrations.

    It is empty for thousands of demonstrations.
    """
    num, inside = len(rand_vecs), rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    inside = inside[is_inside(task, inside)]
    if not len(inside) or num > _MAX_SCALING_SIZE:
        return []
    y = scale(task, reference.reference_init_states(task) if against is None else against)
    curve = []
    for size in sorted({max(1, num // 4), max(1, num // 2), num, 2 * num, 4 * num}):
        num_own = max(1, len(inside) * min(size, num) // num)
        distances = np.empty((2, _NUM_SCALING_DRAWS))
        for i in range(_NUM_SCALING_DRAWS):
            random = scale(task, reference.draw(task, size, seed=i))
            own = scale(task, np.random.default_rng(i).permutation(inside)[:num_own])
            extended = np.concatenate([own, random[: max(0, size - num)]])
            distances[:, i] = distance_to_nearest(extended, y).mean(), distance_to_nearest(random, y).mean()
        nearest, nearest_random = distances.mean(axis=1).tolist()
        curve.append(ScalingPoint(num=size, nearest=nearest, nearest_random=nearest_random))
    return curve
