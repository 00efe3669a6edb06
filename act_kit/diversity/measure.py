"""Do the demonstrated starts cover the starts that the policy will be evaluated from, and are the data sound?

The demonstrated starts X are held against starts Y that the policy will be evaluated from (1,000 of the benchmark's
reset law, unless an evaluation set is named), on the dimensions that vary, scaled by the width of the reset box. No
single test suffices: with one of five dimensions frozen, 50 demonstrations pass an energy test nine times in ten, and a
Kolmogorov-Smirnov test never; with two dimensions correlated it is the correlation that shows it. So several gates are
read, each with an effect that matters and a chance, all gates together, below 1.5 % to be seen in a healthy dataset
(:mod:`act_kit.diversity.reference`); the worst of them is the verdict.
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
    MOST_INIT_STATES,
    ReferenceSet,
    accepted,
    correlations,
    count_distinct,
    draw,
    reference_init_states,
    reference_statistics_against,
    reference_statistics_of,
    scale,
)
from act_kit.diversity.result import Dimension, DiversityReport, ScalingPoint
from act_kit.diversity.sources import measure_sources
from act_kit.diversity.verdict import TOO_FEW, judge, not_judged
from act_kit.errors import DatasetError
from act_kit.files import quoted
from act_kit.sim.initial_states import SAME_INIT_STATE_M, distinct
from act_kit.sim.tasks import Task, get_task
from act_kit.statistics import holm

# Shapes: N demonstrated starts, M starts they are held against, D informative dimensions, G gates.

_COPY_M = 1e-9
"""Starts this near to each other are copies; to a micrometre, in one dimension, a few of a thousand agree by chance."""
_MOST_GROWN = 3000
_NUM_GROWTHS = 8
"""Draws of more demonstrations that the curve is the mean of."""


def measure(store: EpisodeStore, *, against: np.ndarray | None = None) -> DiversityReport:
    """Measure a dataset: its starts (see :func:`measure_init_states`), its numbers, its demonstrations.

    Raises:
        DatasetError: It holds no demonstration yet, or not a start for each, or starts of another size than its task's.
    """
    task = get_task(store.info.task)
    init_states = store.rand_vecs
    if not store.num_episodes:
        raise DatasetError(
            f"{store.path} holds no demonstration yet. Fix: {store.info.command} --out {quoted(store.path)} --resume"
        )
    if init_states.shape != (store.num_episodes, len(task.low)):
        raise DatasetError(
            f"{store.path} records starts of shape {init_states.shape} for {store.num_episodes} demonstrations of "
            f"{task.name}, whose starts are {len(task.low)} numbers. It was changed: collect it again."
        )
    is_changed = store.fingerprint is not None and store.fingerprint != store.compute_fingerprint()
    episodes = store.episodes()
    # In three tasks the goal does not matter to the expert: the same actions from distinct starts are no copies.
    trajectories = [episode.state.tobytes() + episode.action.tobytes() for episode in episodes]
    num_failed = sum(not attempt.kept for attempt in store.attempts())
    diversity = measure_init_states(task, init_states, against=against, num_failed=num_failed)
    num_validation, num_leaked = _leaked(store, trajectories)
    findings = [*check_numbers(episodes), *check_init_states(task, episodes), *diversity.findings]
    if num_leaked and diversity.num_distinct > 1:
        text = (
            f"{num_leaked} of the {num_validation} demonstrations that act train validates with repeat one that it "
            "learns from: the validation loss flatters."
        )
        findings.append(Finding(level="WARN", text=text, about="coverage"))
    if is_changed:
        text = "the content does not match its fingerprint: it was changed after it was collected."
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
    """Measure how well demonstrated starts (N, 3 or 6) cover the task's reset law, or the starts ``against`` (M, …)."""
    num, num_judged = len(rand_vecs), min(len(rand_vecs), MOST_INIT_STATES)
    finite = rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    if not len(finite):
        raise DatasetError(f"None of the {num} starts of {task.name} is finite. Collect the dataset again.")
    inside = finite[is_inside(task, finite)]
    x = scale(task, _sample(inside if len(inside) else finite, len(inside) * num_judged // num))
    y = scale(task, reference_init_states(task) if against is None else against)
    reference = (
        reference_statistics_of(task, num_judged)
        if against is None
        else reference_statistics_against(task, num_judged, y)
    )
    yardstick = ReferenceSet(y)
    distances = cdist(x, y)
    nearest = distances.min(axis=0)
    summary = np.array([nearest.mean(), np.percentile(nearest, 95), nearest.max()])
    beyond = float((nearest > reference.nearest_p99).mean())
    share = yardstick.share_below(x)
    measured = yardstick.measure(x[None], share[None], distances.mean(axis=1)[None])[0]
    values = np.append(measured, beyond)
    chances = dict(zip(yardstick.gates, reference.coverage.p_values(values), strict=False))
    by_gate = dict(zip(yardstick.gates, measured.tolist(), strict=True))
    ks_p = holm(np.array([chances["ks", i] for i in range(x.shape[1])]))
    dimensions = [
        Dimension(
            name=task.dim_name(int(dim)),
            range_fraction=-by_gate["range", i],
            std_ratio=-by_gate["std", i],
            ks_p=float(ks_p[i]),
            shift=float(wasserstein_distance(x[:, i], y[:, i])),
        )
        for i, dim in enumerate(task.informative)
    ]
    differences = np.triu(np.abs(correlations(x) - yardstick.correlation_DD), 1)
    first, second = np.unravel_index(differences.argmax(), differences.shape)
    num_distinct = count_distinct(finite)
    diversity = DiversityReport(
        task=task.name,
        against=f"the starts of {task.name}" if against is None else f"the {len(against)} starts of the evaluation set",
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
        energy_distance=by_gate["energy", -1],
        energy_p=float(chances["energy", -1]),
        effective_rank=-by_gate["rank", -1],
        effective_rank_reference=float(reference.rank),
        correlation=float(differences.max()),
        correlated=(dimensions[first].name, dimensions[second].name) if len(dimensions) > 1 else None,
        notes=[],
        findings=[],
        fix=f"act collect --task {task.name} --randomize --n {max(num, 50)}",
    )
    seen = {
        gate: chance <= ALPHA
        for gate, chance in zip([*yardstick.gates, ("beyond", -1)], reference.coverage.familywise(values), strict=True)
    }
    hole_chances = reference.holes.familywise(yardstick.holes.measure(x[None], share[None], nearest[None])[0])
    holes = {
        scan: yardstick.holes.describe(scan, task, x, share, nearest)
        for scan, chance in zip(SCANS, hole_chances, strict=True)
        if chance <= ALPHA_HOLES
    }
    unread, notes = not_judged(task, diversity, against)
    if num >= TOO_FEW and ("holes", -1) not in unread:
        diversity = replace(diversity, visible_holes=visible_holes(task, num_judged, y, reference))
        notes.append(diversity.could_see)
    seen_gates = {gate for gate in seen if seen[gate]} - unread
    findings = judge(diversity, count_distinct(inside), seen_gates, unread, holes)
    return replace(diversity, notes=notes, findings=findings)


def is_inside(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Tell which finite starts the reset law could have given."""
    above, below = (
        rand_vecs >= np.subtract(task.low, SAME_INIT_STATE_M),
        rand_vecs <= np.add(task.high, SAME_INIT_STATE_M),
    )
    inside: np.ndarray = (above & below).all(axis=1) & accepted(task, rand_vecs)
    return inside


def _sample(init_states: np.ndarray, num: int) -> np.ndarray:
    """Return ``num`` of them, at random but always the same ones, or all if they are no more."""
    order = np.random.default_rng(0).permutation(len(init_states))
    return init_states[order[: max(1, num)]]


def _distance_to(init_states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference of any number between each of ``others`` and the nearest of ``init_states``."""
    distances: np.ndarray = cKDTree(init_states).query(others, p=np.inf)[0]
    return distances


def _leaked(store: EpisodeStore, trajectories: list[bytes]) -> tuple[int, int]:
    """Count validation episodes, and those of them whose initial state, or whole trajectory, a training episode has."""
    if store.num_episodes < 2:
        return 0, 0
    ((train, val),) = split_stores([store], VAL_FRACTION, SPLIT_SEED)
    learnt = {trajectories[i] for i in train}
    init_states = np.nan_to_num(store.rand_vecs, posinf=0, neginf=0)
    near = _distance_to(init_states[train], init_states[val]) <= _COPY_M
    return len(val), sum(bool(same) or trajectories[i] in learnt for i, same in zip(val, near, strict=True))


def _scaling(task: Task, rand_vecs: np.ndarray, against: np.ndarray | None) -> list[ScalingPoint]:
    """Return the curve over a quarter to four times the demonstrations, each point the mean of some draws.

    Thousands of demonstrations are asked for no more.
    """
    num, inside = len(rand_vecs), rand_vecs[np.isfinite(rand_vecs).all(axis=1)]
    inside = inside[is_inside(task, inside)]
    if not len(inside) or num > _MOST_GROWN:
        return []
    y = scale(task, reference_init_states(task) if against is None else against)
    curve = []
    for size in sorted({max(1, num // 4), max(1, num // 2), num, 2 * num, 4 * num}):
        num_own = max(1, len(inside) * min(size, num) // num)
        distances = np.empty((2, _NUM_GROWTHS))
        for i in range(_NUM_GROWTHS):
            random = scale(task, draw(task, size, seed=i))
            own = scale(task, np.random.default_rng(i).permutation(inside)[:num_own])
            for k, init_states in enumerate((np.concatenate([own, random[: max(0, size - num)]]), random)):
                distances[k, i] = cKDTree(init_states).query(y)[0].mean()
        nearest, nearest_random = distances.mean(axis=1)
        curve.append(ScalingPoint(num=size, nearest=float(nearest), nearest_random=float(nearest_random)))
    return curve
