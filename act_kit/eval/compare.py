"""Is one better than the other? Evaluations held against each other, with a verdict only where one can be given.

Configurations first: what differs and was not declared as a factor may be the cause of any difference, and the verdict
is CONFOUNDED. Then the tests of :mod:`act_kit.statistics`: of methods, if there are three training seeds or more of
each, or else of two checkpoints. Several comparisons share their errors by Holm's method: those of pairs of arms, and
apart from them those of every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import ComparisonError
from act_kit.eval.arms import Arm, Change, changes, check_factors, covers, read_arms
from act_kit.statistics import (
    MIN_SEEDS,
    Difference,
    Estimate,
    MeanRate,
    Rate,
    compare_pairs,
    compare_rates,
    compare_seeds,
    holm,
    seeds_mean,
    two_kinds,
)

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Result:
    """How much better the second arm is.

    Attributes:
        difference: Of the success rates, or of their means over the tasks.
        p_holm: Its p-value, adjusted for all comparisons of its kind.
    """

    difference: Difference
    p_holm: float

    @property
    def verdict(self) -> str:
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms held against each other.

    Attributes:
        a, b: The arms; b is better or worse than a.
        changes: What their configurations differ in.
        result: Over all tasks; None where there are too few seeds.
        by_task: Of each task, where there are several.
    """

    a: Arm
    b: Arm
    changes: list[Change]
    result: Result | None
    by_task: dict[str, Result]

    @property
    def confounds(self) -> list[Change]:
        """What they differ in and was not declared."""
        return [change for change in self.changes if not change.declared]

    @property
    def verdict(self) -> str:
        """CONFOUNDED, too few seeds, better, worse or no difference shown."""
        return "CONFOUNDED" if self.confounds else self.result.verdict if self.result else "too few seeds"

    @property
    def decided(self) -> bool:
        """Whether a verdict could be given."""
        return not self.confounds and self.result is not None

    @cached_property
    def sentence(self) -> str:
        """The verdict as a sentence a person can act on."""
        a, b = self.a.label, self.b.label
        few = [f"{arm.label} has {len(arm.seeds)}" for arm in (self.a, self.b) if len(arm.seeds) < MIN_SEEDS]
        if self.confounds:
            told = "; ".join(f"{change.key} ({change.a} | {change.b})" for change in self.confounds)
            return (
                f"CONFOUNDED: {a} and {b} differ in what was not declared, and any of it may be the cause: {told}. "
                "Make them alike, or say what you compare: --factor KEY"
            )
        if self.result is None:
            return (
                f"No verdict on {a} and {b}: {', '.join(few)} of the {MIN_SEEDS} training seeds that it takes to tell "
                "methods apart. Train more: act train --seeds 3"
            )
        difference = self.result.difference
        means = f"success {100 * mean_of(self.b).value:.1f} % against {100 * mean_of(self.a).value:.1f} %"
        family = ", by Holm" if self.result.p_holm != difference.p else ""
        p = "p < 0.001" if self.result.p_holm < 0.001 else f"p = {self.result.p_holm:.3f}"
        numbers = f"{means}, a difference of {points(difference)} ({difference.test}, {p}{family})."
        if self.verdict == "no difference shown":
            could = f"one of {100 * difference.detectable:.0f} points would have been, with a power of 80 %"
            if difference.detectable >= 1:
                could = f"with so few {'episodes' if few else 'seeds'}, none would have been"
            text = f"No difference shown between {b} and {a}: {numbers[:-1]}; {could}."
        else:
            text = f"{b} is {self.verdict} than {a}: {numbers}"
        for verdict in ("better", "worse", "no difference shown"):
            tasks = [task for task, result in self.by_task.items() if result.verdict == verdict]
            if tasks:
                text += f" {verdict.capitalize()}: {', '.join(tasks)}."
        if few:
            text += (
                " This holds of these two checkpoints only: one training seed cannot tell methods apart. To compare "
                "methods: act train --seeds 3"
            )
        return text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All arms, each held against each.

    Attributes:
        arms: In the order they were given; the first is what the others are better or worse than.
        pairs: Every two of them.
        factors: What was declared to be compared.
    """

    arms: list[Arm]
    pairs: list[Pair]
    factors: list[str]

    @property
    def decided(self) -> bool:
        """Whether every pair has a verdict."""
        return all(pair.decided for pair in self.pairs)

    @property
    def notes(self) -> list[str]:
        """What a reader should know beside the verdicts: what is missing, what crashed, seeds of two kinds."""
        notes = [problem for arm in self.arms for problem in arm.problems]
        if any(arm.missing for arm in self.arms):
            notes.append("What is missing may be what went wrong: without it, an arm looks better than it is.")
        notes += [note for arm in self.arms if (note := kinds_of_seeds(arm))]
        found = [change.key for pair in self.pairs for change in pair.changes]
        for factor in self.factors:
            if not any(covers(factor, key) for key in found):
                notes.append(f"--factor {factor} does not differ between any two.")
        if not found:
            notes.append("The configurations do not differ: what is compared are chance and training seeds.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "decided": self.decided,
            "factors": self.factors,
            "notes": self.notes,
            "arms": [
                {
                    "label": arm.label,
                    "path": str(arm.path),
                    "mean": asdict(mean_of(arm)),
                    "missing": arm.missing,
                    "seeds": [
                        {
                            "name": seed.name,
                            "evaluation": str(seed.folder),
                            "success": seed.value,
                            "tasks": {
                                task: {
                                    "successes": int(measured.successes.sum()),
                                    "num": len(measured.successes),
                                    "crashes": list(measured.crashes),
                                    "evalset": measured.evalset.hash,
                                }
                                for task, measured in seed.tasks.items()
                            },
                        }
                        for seed in arm.seeds
                    ],
                }
                for arm in self.arms
            ],
            "pairs": [
                {
                    "a": pair.a.label,
                    "b": pair.b.label,
                    "verdict": pair.verdict,
                    "sentence": pair.sentence,
                    "changes": [asdict(change) for change in pair.changes],
                    "result": pair.result and asdict(pair.result),
                    "tasks": {
                        task: {"verdict": result.verdict, **asdict(result)} for task, result in pair.by_task.items()
                    },
                }
                for pair in self.pairs
            ],
        }


def compare(paths: Sequence[Path], factors: Sequence[str]) -> Comparison:
    """Compare the arms at ``paths``, two or more, that differ in ``factors``.

    Raises:
        ComparisonError: One is missing, or they cannot be compared.
        ConfigError: A factor does not exist.
    """
    if len(paths) < 2:
        raise ComparisonError("A comparison needs two or more: act compare RUN RUN")
    arms = read_arms(paths)
    check_factors(arms, factors)
    couples = list(combinations(arms, 2))
    tasks = arms[0].tasks
    overall = _results([(a, b, tasks) for a, b in couples])
    single = [(a, b, (task,)) for a, b in couples for task in tasks] if len(tasks) > 1 else []
    by_task = iter(_results(single))
    pairs: list[Pair] = []
    for (a, b), result in zip(couples, overall, strict=True):
        of_tasks = {task: next(by_task) for task in tasks} if single else {}
        pairs.append(
            Pair(
                a=a, b=b, changes=changes(a, b, factors), result=result,
                by_task={task: found for task, found in of_tasks.items() if found},
            )
        )  # fmt: skip
    return Comparison(arms=arms, pairs=pairs, factors=list(factors))


def _results(comparisons: Sequence[tuple[Arm, Arm, tuple[str, ...]]]) -> list[Result | None]:
    """Make comparisons that share their errors; None where there are too few seeds for one."""
    num = sum(_enough(a, b) for a, b, _ in comparisons)
    differences = [_difference(a, b, tasks, LEVEL / num) if _enough(a, b) else None for a, b, tasks in comparisons]
    adjusted = iter(holm(np.array([difference.p for difference in differences if difference])))
    return [
        None if difference is None else Result(difference=difference, p_holm=float(next(adjusted)))
        for difference in differences
    ]


def _enough(a: Arm, b: Arm) -> bool:
    """Whether there are seeds enough to compare methods, or just two checkpoints to compare."""
    return min(len(a.seeds), len(b.seeds)) >= MIN_SEEDS or len(a.seeds) == len(b.seeds) == 1


def _difference(a: Arm, b: Arm, tasks: tuple[str, ...], level: float) -> Difference:
    same_starts = a.hashes(*tasks) == b.hashes(*tasks)
    of_a, of_b = a.successes(*tasks), b.successes(*tasks)
    if len(a.seeds) > 1:
        return compare_seeds(of_a, of_b, same_starts=same_starts, level=level)
    for arm, of_arm in ((a, of_a), (b, of_b)):
        if len({of_task.shape[1] for of_task in of_arm}) > 1:
            raise ComparisonError(
                f"The tasks of {arm.label} have different numbers of episodes: compare them one by one, by the folders "
                "in its evaluation."
            )
    # With as many episodes of each task, the rate of all is the mean of theirs; what varies between tasks makes tests
    # and intervals wider than they need be (see MeanRate).
    all_a, all_b = np.concatenate(of_a, axis=1)[0], np.concatenate(of_b, axis=1)[0]
    if same_starts:
        return compare_pairs(all_a, all_b, level=level)
    rates = (Rate(int(successes.sum()), len(successes)) for successes in (all_a, all_b))
    return compare_rates(*rates, level=level)


def mean_of(arm: Arm) -> Estimate:
    """Return the mean success of an arm's seeds, or that of its only checkpoint."""
    if len(arm.seeds) > 1:
        return seeds_mean(arm.successes(*arm.tasks))
    tasks = [measured.successes for measured in arm.seeds[0].tasks.values()]
    rate = MeanRate(tuple(Rate(int(successes.sum()), len(successes)) for successes in tasks))
    low, high = rate.interval or (0.0, 1.0)
    return Estimate(value=rate.value, low=low, high=high)


def kinds_of_seeds(arm: Arm) -> str | None:
    """Name the seeds that work and those that do not, where an arm's fall apart."""
    kinds = two_kinds([seed.value for seed in arm.seeds])
    if kinds is None:
        return None
    worse, better = (f"{len(side)} at {_span(side)}" for side in kinds)
    return f"The seeds of {arm.label} are of two kinds, {worse} and {better}: their mean describes neither."


def _span(rates: Sequence[float]) -> str:
    low, high = f"{100 * min(rates):.0f}", f"{100 * max(rates):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def points(difference: Difference) -> str:
    """Return a difference with its interval."""
    value, low, high = (f"{100 * x:+.1f}" for x in (difference.value, difference.low, difference.high))
    return f"{value} points [{low}, {high}]"
