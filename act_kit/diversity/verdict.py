"""The verdict on a dataset's starts: which measured numbers say that they do not cover the task, and how badly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from act_kit.datasets.split import NEAR_COPY
from act_kit.diversity.integrity import Finding
from act_kit.diversity.power import LEAST_BEYOND
from act_kit.diversity.reference import MOST_INIT_STATES
from act_kit.diversity.result import DiversityReport, percent
from act_kit.sim.initial_states import SAME_INIT_STATE_M
from act_kit.sim.tasks import INFORMATIVE_WIDTH_M, Task, get_task

TOO_FEW = 10

Gates = set[tuple[str, int]]


def not_judged(task: Task, d: DiversityReport, against: np.ndarray | None) -> tuple[Gates, list[str]]:
    """Return the gates that cannot be read here, and why."""
    notes = []
    if d.num > MOST_INIT_STATES:
        notes.append(f"Coverage was read on {MOST_INIT_STATES} of the {d.num} starts.")
    if against is None:
        return set(), notes
    gates: Gates = set()
    for i, dim in enumerate(task.informative):
        if len(against) < TOO_FEW or np.ptp(against[:, dim]) < INFORMATIVE_WIDTH_M:
            gates |= {("range", i), ("std", i), ("ks", i)}
            notes.append(
                f"The distribution of {task.dim_name(int(dim))} was not judged: the evaluation set hardly varies it."
            )
    if len(against) < TOO_FEW:
        gates |= {("energy", -1), ("rank", -1), ("correlation", -1), ("holes", -1)}
        notes = [note for note in notes if "distribution" not in note]
        notes.append(
            f"An evaluation set of {len(against)} starts has no distribution: only distances to it were judged."
        )
    return gates, notes


def judge(d: DiversityReport, num_inside: int, seen: Gates, unread: Gates, holes: Mapping[str, str]) -> list[Finding]:
    """Say what is wrong.

    Args:
        d: What was measured.
        num_inside: Distinct starts that the reset law could have given.
        seen: Gates that would hardly be as far out in a healthy dataset.
        unread: Gates that cannot be read.
        holes: Scans for holes that would hardly show as much in a healthy dataset, with what they show.
    """
    findings: list[Finding] = []

    def fail(text: str) -> None:
        findings.append(Finding(level="FAIL", text=text, about="coverage"))

    def warn(text: str) -> None:
        findings.append(Finding(level="WARN", text=text, about="coverage"))

    if d.num_outside == d.num:
        fail(f"no start lies where {d.task} begins: are they of another task?")
        return findings
    if d.num_distinct == 1 and d.num > 1:
        fail(
            f"all {d.num} demonstrations begin from one and the same start. A policy that learns from them has not "
            "seen any of the starts it will be evaluated from."
        )
        return findings
    if d.num_outside:
        warn(f"{percent(d.num_outside / d.num)} of the starts lie where {d.task} never begins; they cover nothing.")
    if d.num_shared:
        warn(f"{d.num_shared} of the demonstrated starts are in the evaluation set: success from them may be memory.")
    if d.num < TOO_FEW:
        warn(f"{d.num} demonstrations are too few to judge their coverage.")
        return findings
    num_apart = min(num_inside, d.num_apart)
    if num_inside < max(5, 0.05 * d.num) or num_apart < 5:
        fail(f"the {d.num} demonstrations begin from only {num_apart} distinct starts.")
    frozen = {i for i, row in enumerate(d.dimensions) if row.range_fraction < 0.05 and ("range", i) not in unread}
    if frozen:
        names = ", ".join(d.dimensions[i].name for i in sorted(frozen))
        fail(f"{names} hardly varies: less than 5 % of the range it is evaluated on.")
    # In one dimension a single hole, where an expert failed, doubles the mean distance: "much" is asked for too.
    far = d.nearest_ratio > (2.0 if len(d.dimensions) <= 3 else 1.5) and d.beyond_p99 > 0.2
    if d.energy_p <= 0.001 and far and ("energy", -1) not in unread:
        fail(
            f"the starts leave much of the task uncovered: a fresh start is {d.nearest_ratio:.1f} times as far from "
            f"the nearest demonstration as with {d.num} random starts (energy test p = {d.energy_p:.4f})."
        )
    low_range, low_std = (0.8, 0.75) if d.num >= 50 else (0.6, 0.6)
    for i, row in enumerate(d.dimensions):
        if i in frozen:
            continue
        if ("range", i) in seen and row.range_fraction < low_range:
            warn(f"{row.name} covers only {percent(row.range_fraction)} of its range.")
        elif ("std", i) in seen and row.std_ratio < low_std:
            warn(f"{row.name} varies only {percent(row.std_ratio)} as much as it will in evaluation.")
        if ("ks", i) in seen and row.shift > 0.05:
            warn(f"{row.name} is distributed otherwise than in evaluation (Kolmogorov-Smirnov p < {row.ks_p:.1g}).")
    if ("correlation", -1) in seen and d.correlation > 0.3 and d.correlated:
        warn(f"{d.correlated[0]} and {d.correlated[1]} vary together (their correlation is {d.correlation:.2f} off).")
    elif ("rank", -1) in seen and d.effective_rank < 0.85 * d.effective_rank_reference and not frozen:
        warn(f"dimensions vary together: effective rank {d.effective_rank:.1f}, not {d.effective_rank_reference:.1f}.")
    task = get_task(d.task)
    by_chance = d.num * np.prod(2 * SAME_INIT_STATE_M / task.width[task.informative])  # 2 % of 2,000 in one dimension
    if d.duplicate_fraction > 0.02 + by_chance:
        warn(f"{percent(d.duplicate_fraction)} of the demonstrations repeat the start of another.")
    elif d.num_distinct - d.num_apart > 0.02 * d.num + _near_by_chance(task, d.num):
        warn(
            f"{d.num_distinct - d.num_apart} of {d.num} demonstrations are near copies: they begin within "
            f"{100 * NEAR_COPY:.1f} % of the box of another, and teach hardly more."
        )
    if ("holes", -1) not in unread:
        is_narrow = any(gate == "range" and gate_dim not in frozen for gate, gate_dim in seen)
        for scan, text in holes.items():
            if not (scan == "gap" and (frozen or is_narrow)):  # which has been said
                warn(f"a hole: {text}")
    if ("beyond", -1) in seen and d.beyond_p99 > LEAST_BEYOND:
        warn(f"{percent(d.beyond_p99)} of fresh starts are farther from a demonstration than 1 % should be.")
    return findings


def _near_by_chance(task: Task, num: int) -> float:
    """Return how many of ``num`` random initial states are near copies of another, five standard deviations up."""
    expected = num**2 / 2 * float((2 * NEAR_COPY) ** len(task.informative))
    return expected + 5 * float(np.sqrt(expected))
