"""The verdict on the coverage of a dataset: thresholds on the measured statistics and their messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import numpy as np

from act_kit.datasets.split import NEAR_COPY
from act_kit.diversity.integrity import Finding, Level
from act_kit.diversity.power import MIN_BEYOND
from act_kit.diversity.reference import MAX_INIT_STATES
from act_kit.diversity.result import DiversityReport, percent
from act_kit.sim.initial_states import SAME_INIT_STATE_M
from act_kit.sim.tasks import INFORMATIVE_WIDTH_M, Task, get_task

TOO_FEW = 10

Statistics = set[tuple[str, int]]
Problem = tuple[Level, str]


def skipped_statistics(task: Task, d: DiversityReport, against: np.ndarray | None) -> tuple[Statistics, list[str]]:
    """Return the statistics that cannot be evaluated for this dataset, and why."""
    skipped: Statistics = set()
    notes = []
    if d.num > MAX_INIT_STATES:
        notes.append(f"Coverage was measured on {MAX_INIT_STATES} of the {d.num} initial states.")
    if against is None:
        return skipped, notes
    is_small = len(against) < TOO_FEW
    for i, dim in enumerate(task.informative):
        if is_small or np.ptp(against[:, dim]) < INFORMATIVE_WIDTH_M:
            skipped |= {("range", i), ("std", i), ("ks", i)}
            if not is_small:
                name = task.dim_name(int(dim))
                notes.append(f"The distribution of {name} was not checked: the evaluation set hardly varies it.")
    if is_small:
        skipped |= {("energy", -1), ("rank", -1), ("correlation", -1), ("holes", -1)}
        notes.append(
            f"An evaluation set of {len(against)} initial states is too small to compare distributions: only distances "
            "to it were checked."
        )
    return skipped, notes


def coverage_findings(
    d: DiversityReport, num_inside: int, significant: Statistics, skipped: Statistics, holes: Mapping[str, str]
) -> list[Finding]:
    """Return the coverage problems of a dataset.

    Args:
        d: Measurements.
        num_inside: Number of distinct initial states inside the task's distribution.
        significant: Statistics that are unlikely in a healthy dataset.
        skipped: Statistics that cannot be evaluated.
        holes: Significant scans for holes, each with a description of the hole.
    """
    problems = _problems(d, num_inside, significant, skipped, holes)
    return [Finding(level=level, text=text, about="coverage") for level, text in problems]


def _problems(
    d: DiversityReport, num_inside: int, significant: Statistics, skipped: Statistics, holes: Mapping[str, str]
) -> Iterator[Problem]:
    if d.num_outside == d.num:
        yield "FAIL", f"no initial state lies in the distribution of {d.task}: are they of another task?"
        return
    if d.num_distinct == 1 and d.num > 1:
        yield (
            "FAIL",
            f"all {d.num} demonstrations begin from the same initial state. A policy trained on them has seen none of "
            "the initial states it will be evaluated from.",
        )
        return
    if d.num_outside:
        share = percent(d.num_outside / d.num)
        yield "WARN", f"{share} of the initial states lie outside the distribution of {d.task}; they cover nothing."
    if d.num_shared:
        memorized = "success from them may be memorized"
        yield "WARN", f"{d.num_shared} of the demonstrated initial states are in the evaluation set: {memorized}."
    if d.num < TOO_FEW:
        yield "WARN", f"{d.num} demonstrations are too few to assess their coverage."
        return
    num_apart = min(num_inside, d.num_apart)
    if num_inside < max(5, 0.05 * d.num) or num_apart < 5:
        yield "FAIL", f"the {d.num} demonstrations begin from only {num_apart} distinct initial states."
    frozen = {i for i, row in enumerate(d.dimensions) if row.range_fraction < 0.05 and ("range", i) not in skipped}
    if frozen:
        names = ", ".join(d.dimensions[i].name for i in sorted(frozen))
        yield "FAIL", f"{names} hardly varies: less than 5 % of the range it is evaluated on."
    yield from _uncovered(d, skipped)
    yield from _dimension_problems(d, significant, frozen)
    yield from _dependent_dimensions(d, significant, frozen)
    yield from _copies(d)
    yield from _holes(holes, significant, skipped, frozen)
    if ("beyond", -1) in significant and d.beyond_p99 > MIN_BEYOND:
        share = percent(d.beyond_p99)
        yield "WARN", f"{share} of new initial states are farther from a demonstration than 1 % should be."


def _uncovered(d: DiversityReport, skipped: Statistics) -> Iterator[Problem]:
    # In one dimension, a single hole where an expert failed doubles the mean distance: require a large effect too.
    is_far = d.nearest_ratio > (2.0 if len(d.dimensions) <= 3 else 1.5) and d.beyond_p99 > 0.2
    if d.energy_p <= 0.001 and is_far and ("energy", -1) not in skipped:
        yield (
            "FAIL",
            f"the initial states leave much of the task uncovered: a new initial state is {d.nearest_ratio:.1f} times "
            f"as far from the nearest demonstration as with {d.num} random initial states (energy test p = "
            f"{d.energy_p:.4f}).",
        )


def _dimension_problems(d: DiversityReport, significant: Statistics, frozen: Set[int]) -> Iterator[Problem]:
    low_range, low_std = (0.8, 0.75) if d.num >= 50 else (0.6, 0.6)
    for i, row in enumerate(d.dimensions):
        if i in frozen:
            continue
        if ("range", i) in significant and row.range_fraction < low_range:
            yield "WARN", f"{row.name} covers only {percent(row.range_fraction)} of its range."
        elif ("std", i) in significant and row.std_ratio < low_std:
            yield "WARN", f"{row.name} varies only {percent(row.std_ratio)} as much as in the evaluation."
        if ("ks", i) in significant and row.shift > 0.05:
            test = f"Kolmogorov-Smirnov p < {row.ks_p:.1g}"
            yield "WARN", f"{row.name} is distributed differently than in the evaluation ({test})."


def _dependent_dimensions(d: DiversityReport, significant: Statistics, frozen: Set[int]) -> Iterator[Problem]:
    if ("correlation", -1) in significant and d.correlation > 0.3 and d.correlated:
        names = " and ".join(d.correlated)
        yield "WARN", f"{names} vary together (their correlation differs by {d.correlation:.2f})."
    elif ("rank", -1) in significant and d.effective_rank < 0.85 * d.effective_rank_reference and not frozen:
        ranks = f"effective rank {d.effective_rank:.1f}, not {d.effective_rank_reference:.1f}"
        yield "WARN", f"dimensions vary together: {ranks}."


def _copies(d: DiversityReport) -> Iterator[Problem]:
    task, num_near = get_task(d.task), d.num_distinct - d.num_apart
    by_chance = d.num * np.prod(2 * SAME_INIT_STATE_M / task.width[task.informative])  # 2 % of 2,000 in one dimension
    pairs_by_chance = d.num**2 / 2 * (2 * NEAR_COPY) ** len(task.informative)
    if d.duplicate_fraction > 0.02 + by_chance:
        repeated = percent(d.duplicate_fraction)
        yield "WARN", f"{repeated} of the demonstrations repeat the initial state of another one."
    elif num_near > 0.02 * d.num + pairs_by_chance + 5 * np.sqrt(pairs_by_chance):  # mean + 5 standard deviations
        yield (
            "WARN",
            f"{num_near} of {d.num} demonstrations are near copies: their initial states are within "
            f"{100 * NEAR_COPY:.1f} % of the box of another one and add hardly any information.",
        )


def _holes(
    holes: Mapping[str, str], significant: Statistics, skipped: Statistics, frozen: Set[int]
) -> Iterator[Problem]:
    is_narrow = any(name == "range" and dim not in frozen for name, dim in significant)
    for scan, text in holes.items():
        is_reported = scan == "gap" and (frozen or is_narrow)
        if not is_reported and ("holes", -1) not in skipped:
            yield "WARN", f"a hole: {text}"
