"""The verdict on the coverage of a dataset: thresholds on the measured statistics and their messages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from act_kit.datasets.split import NEAR_COPY
from act_kit.diversity.integrity import Finding
from act_kit.diversity.power import MIN_BEYOND
from act_kit.diversity.reference import MAX_INIT_STATES
from act_kit.diversity.result import DiversityReport, percent
from act_kit.sim.initial_states import SAME_INIT_STATE_M
from act_kit.sim.tasks import INFORMATIVE_WIDTH_M, Task, get_task

TOO_FEW = 10

Statistics = set[tuple[str, int]]


def skipped_statistics(task: Task, d: DiversityReport, against: np.ndarray | None) -> tuple[Statistics, list[str]]:
    """Return the statistics that cannot be evaluated for this dataset, and why."""
    notes = []
    if d.num > MAX_INIT_STATES:
        notes.append(f"Coverage was measured on {MAX_INIT_STATES} of the {d.num} initial states.")
    if against is None:
        return set(), notes
    skipped: Statistics = set()
    for i, dim in enumerate(task.informative):
        if len(against) < TOO_FEW or np.ptp(against[:, dim]) < INFORMATIVE_WIDTH_M:
            skipped |= {("range", i), ("std", i), ("ks", i)}
            notes.append(
                f"The distribution of {task.dim_name(int(dim))} was not checked: the evaluation set hardly varies it."
            )
    if len(against) < TOO_FEW:
        skipped |= {("energy", -1), ("rank", -1), ("correlation", -1), ("holes", -1)}
        notes = [note for note in notes if "distribution" not in note]
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
    findings: list[Finding] = []

    def fail(text: str) -> None:
        findings.append(Finding(level="FAIL", text=text, about="coverage"))

    def warn(text: str) -> None:
        findings.append(Finding(level="WARN", text=text, about="coverage"))

    if d.num_outside == d.num:
        fail(f"no initial state lies in the distribution of {d.task}: are they of another task?")
        return findings
    if d.num_distinct == 1 and d.num > 1:
        fail(
            f"all {d.num} demonstrations begin from the same initial state. A policy trained on them has seen none of "
            "the initial states it will be evaluated from."
        )
        return findings
    if d.num_outside:
        warn(
            f"{percent(d.num_outside / d.num)} of the initial states lie outside the distribution of {d.task}; they "
            "cover nothing."
        )
    if d.num_shared:
        warn(
            f"{d.num_shared} of the demonstrated initial states are in the evaluation set: success from them may "
            "be memorized."
        )
    if d.num < TOO_FEW:
        warn(f"{d.num} demonstrations are too few to assess their coverage.")
        return findings
    num_apart = min(num_inside, d.num_apart)
    if num_inside < max(5, 0.05 * d.num) or num_apart < 5:
        fail(f"the {d.num} demonstrations begin from only {num_apart} distinct initial states.")
    frozen = {i for i, row in enumerate(d.dimensions) if row.range_fraction < 0.05 and ("range", i) not in skipped}
    if frozen:
        names = ", ".join(d.dimensions[i].name for i in sorted(frozen))
        fail(f"{names} hardly varies: less than 5 % of the range it is evaluated on.")
    # In one dimension, a single hole where an expert failed doubles the mean distance: require a large effect too.
    far = d.nearest_ratio > (2.0 if len(d.dimensions) <= 3 else 1.5) and d.beyond_p99 > 0.2
    if d.energy_p <= 0.001 and far and ("energy", -1) not in skipped:
        fail(
            f"the initial states leave much of the task uncovered: a new initial state is {d.nearest_ratio:.1f} times "
            f"as far from the nearest demonstration as with {d.num} random initial states (energy test p = "
            f"{d.energy_p:.4f})."
        )
    low_range, low_std = (0.8, 0.75) if d.num >= 50 else (0.6, 0.6)
    for i, row in enumerate(d.dimensions):
        if i in frozen:
            continue
        if ("range", i) in significant and row.range_fraction < low_range:
            warn(f"{row.name} covers only {percent(row.range_fraction)} of its range.")
        elif ("std", i) in significant and row.std_ratio < low_std:
            warn(f"{row.name} varies only {percent(row.std_ratio)} as much as in the evaluation.")
        if ("ks", i) in significant and row.shift > 0.05:
            warn(
                f"{row.name} is distributed differently than in the evaluation (Kolmogorov-Smirnov p < {row.ks_p:.1g})."
            )
    if ("correlation", -1) in significant and d.correlation > 0.3 and d.correlated:
        warn(
            f"{d.correlated[0]} and {d.correlated[1]} vary together (their correlation differs by {d.correlation:.2f})."
        )
    elif ("rank", -1) in significant and d.effective_rank < 0.85 * d.effective_rank_reference and not frozen:
        warn(f"dimensions vary together: effective rank {d.effective_rank:.1f}, not {d.effective_rank_reference:.1f}.")
    task = get_task(d.task)
    by_chance = d.num * np.prod(2 * SAME_INIT_STATE_M / task.width[task.informative])  # 2 % of 2,000 in one dimension
    if d.duplicate_fraction > 0.02 + by_chance:
        warn(f"{percent(d.duplicate_fraction)} of the demonstrations repeat the initial state of another one.")
    elif d.num_distinct - d.num_apart > 0.02 * d.num + _near_by_chance(task, d.num):
        warn(
            f"{d.num_distinct - d.num_apart} of {d.num} demonstrations are near copies: their initial states are "
            f"within {100 * NEAR_COPY:.1f} % of the box of another one and add hardly any information."
        )
    if ("holes", -1) not in skipped:
        is_narrow = any(name == "range" and dim not in frozen for name, dim in significant)
        for scan, text in holes.items():
            if not (scan == "gap" and (frozen or is_narrow)):  # already reported
                warn(f"a hole: {text}")
    if ("beyond", -1) in significant and d.beyond_p99 > MIN_BEYOND:
        warn(f"{percent(d.beyond_p99)} of new initial states are farther from a demonstration than 1 % should be.")
    return findings


def _near_by_chance(task: Task, num: int) -> float:
    """Return an upper bound (mean + 5 standard deviations) of the near copies in ``num`` random initial states."""
    expected = num**2 / 2 * float((2 * NEAR_COPY) ** len(task.informative))
    return expected + 5 * float(np.sqrt(expected))
