"""Is one better than the other? Evaluations held against each other, with a verdict only where one can be given.

Configurations first: what differs and was not declared as a factor may be the cause of any difference, and the verdict
is CONFOUNDED. Then the tests of :mod:`act_kit.statistics`: of methods, if there are three training seeds or more of
each, or else of two checkpoints. Several comparisons share their errors by Holm's method: those of pairs of arms, and
apart from them those of every task. The interval of a difference is at the level at which it was tested, so it never
contradicts the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.compare.experiments import ConfigDifference, Method, changes, check_factors, covers, read_methods
from act_kit.errors import ComparisonError
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.statistics import (
    GAP,
    MIN_SEEDS,
    Difference,
    Estimate,
    MacroAverageRate,
    Rate,
    compare_pairs,
    compare_rates,
    compare_seeds,
    holm,
    holm_levels,
    largest_unseen_share,
    seeds_mean,
    seeds_to_bound,
    share_interval,
    split_bimodal,
)

LEVEL = 0.05

MIN_SHARED = 20
"""Shared initial states that are paired, if they are also half of the smaller evaluation's; fewer show less than all
episodes do unpaired."""

_BOUND = 0.1
"""Share of collapsing seeds that a user may want to rule out."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How much better the second arm is.

    Attributes:
        difference: Of the success rates, or of their means over the tasks; at the level at which Holm tests it.
        p_holm: Its p-value, adjusted for all comparisons of its kind.
        means: The two success rates, of the episodes that were compared.
    """

    difference: Difference
    p_holm: float
    means: tuple[float, float]

    @property
    def verdict(self) -> str:
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class SharedStates:
    """Initial states of one task in two evaluations.

    Attributes:
        num_a, num_b: Of each.
        pairs: Where the shared ones are in a, and in b.
    """

    num_a: int
    num_b: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def are_all(self) -> bool:
        """Whether both evaluations have the same ones."""
        return len(self.pairs) == self.num_a == self.num_b

    @property
    def enough(self) -> bool:
        """Whether comparing only the shared ones, in pairs, shows more than comparing all."""
        return self.are_all or len(self.pairs) >= max(MIN_SHARED, min(self.num_a, self.num_b) / 2)

    @classmethod
    def of(cls, a: InitialStateSet, b: InitialStateSet) -> SharedStates:
        """Find the initial states that are equal to the bit; one that occurs twice in both is shared twice."""
        places: dict[tuple[float, ...], list[int]] = {}
        for j, init_state in enumerate(b.init_states):
            places.setdefault(init_state.rand_vec, []).append(j)
        found = [
            (i, places[init_state.rand_vec].pop(0))
            for i, init_state in enumerate(a.init_states)
            if places.get(init_state.rand_vec)
        ]
        return cls(num_a=len(a.init_states), num_b=len(b.init_states), pairs=tuple(found))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms held against each other.

    Attributes:
        a, b: The arms; b is better or worse than a.
        changes: What their configurations differ in.
        states: Their initial states, by task.
        copies: Seeds of a and b that are the same evaluation, by name.
        result: Over all tasks; None where there are too few seeds, or copies.
        by_task: Of each task, where there are several.
    """

    a: Method
    b: Method
    changes: list[ConfigDifference]
    states: dict[str, SharedStates]
    copies: list[tuple[str, str]]
    result: Result | None
    by_task: dict[str, Result]

    @property
    def confounds(self) -> list[ConfigDifference]:
        """What they differ in and was not declared."""
        return [change for change in self.changes if not change.declared]

    @property
    def verdict(self) -> str:
        """SAME EVALUATION, CONFOUNDED, too few seeds, better, worse or no difference shown."""
        if self.copies:
            return "SAME EVALUATION"
        return "CONFOUNDED" if self.confounds else self.result.verdict if self.result else "too few seeds"

    @property
    def decided(self) -> bool:
        """Whether a verdict could be given."""
        return not self.confounds and self.result is not None

    @property
    def states_note(self) -> str:
        """How their initial states differ, and what was done about it; "" if they do not differ."""
        if all(states.are_all for states in self.states.values()):
            return ""
        shared, num_a, num_b = (
            sum(numbers)
            for numbers in zip(*((len(s.pairs), s.num_a, s.num_b) for s in self.states.values()), strict=True)
        )
        text = (
            f"{self.a.label} and {self.b.label} were evaluated from different initial states: {shared} are shared, of "
            f"{num_a} and {num_b}."
        )
        if are_paired(list(self.states.values())):
            return f"{text} Only those are compared, in pairs."
        return (
            f"{text} Pairs need {MIN_SHARED} shared ones that are half of the smaller evaluation's: all episodes are "
            "compared, unpaired. To compare in pairs, evaluate both with the same --seed and --episodes."
        )

    @cached_property
    def sentence(self) -> str:
        """The verdict as a sentence a person can act on."""
        a, b = self.a.label, self.b.label
        if self.copies:
            told = "; ".join(f"{of_a} and {of_b}" for of_a, of_b in self.copies)
            return (
                f"No verdict on {a} and {b}: they are not independent. The same evaluation, with every number of every "
                f"episode equal: {told}. Give evaluations of different checkpoints: act eval RUN"
            )
        if self.confounds:
            told = "; ".join(f"{change.key} ({change.a} | {change.b})" for change in self.confounds)
            return (
                f"CONFOUNDED: {a} and {b} differ in what was not declared, and any of it may be the cause: {told}. "
                "Make them alike, or say what you compare: --vary KEY"
            )
        few = [
            f"{method.label} has {len(method.seeds)}" for method in (self.a, self.b) if len(method.seeds) < MIN_SEEDS
        ]
        if self.result is None:
            return (
                f"No verdict on {a} and {b}: {', '.join(few)} of the {MIN_SEEDS} training seeds that it takes to tell "
                "methods apart. Train more: act train --seeds 3"
            )
        text = self._result_text(self.result)
        for verdict in ("better", "worse", "no difference shown"):
            tasks = [task for task, result in self.by_task.items() if result.verdict == verdict]
            if tasks:
                text += f" {verdict.capitalize()}: {', '.join(tasks)}."
        if few:
            text += (
                " This holds of these two checkpoints only: one training seed cannot tell methods apart. To compare "
                "methods: act train --seeds 3"
            )
        notes = " ".join(filter(None, (kinds_of_seeds(self.a), kinds_of_seeds(self.b))))
        return f"{text} {notes}".rstrip()

    def _result_text(self, result: Result) -> str:
        difference = result.difference
        rates = [_success_text(method, mean) for method, mean in zip((self.a, self.b), result.means, strict=True)]
        family = ", by Holm" if result.p_holm != difference.p else ""
        p = "p < 0.001" if result.p_holm < 0.001 else f"p = {result.p_holm:.3f}"
        numbers = (
            f"success {rates[1]} against {rates[0]}, a difference of {points(difference)} ({difference.test}, "
            f"{p}{family})"
        )
        if result.verdict != "no difference shown":
            return f"{self.b.label} is {result.verdict} than {self.a.label}: {numbers}."
        could = f"one of {100 * difference.detectable:.0f} points would have been, with a power of 80 %"
        if difference.detectable >= 1:
            could = f"with so few {'seeds' if len(self.a.seeds) > 1 else 'episodes'}, none would have been"
        return f"No difference shown between {self.b.label} and {self.a.label}: {numbers}; {could}."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All arms, each held against each.

    Attributes:
        arms: In the order they were given; the first is what the others are better or worse than.
        pairs: Every two of them.
        factors: What was declared to be compared.
    """

    methods: list[Method]
    pairs: list[Pair]
    factors: list[str]

    @property
    def decided(self) -> bool:
        """Whether every pair has a verdict."""
        return all(pair.decided for pair in self.pairs)

    @property
    def notes(self) -> list[str]:
        """What a reader should know beside the verdicts: what is missing, crashed, not shared; seeds of two kinds."""
        notes = [problem for method in self.methods for problem in method.problems]
        if any(method.missing for method in self.methods):
            notes.append("What is missing may be what went wrong: without it, an arm looks better than it is.")
        notes += [pair.states_note for pair in self.pairs if pair.states_note]
        notes += [kinds_of_seeds(method) for method in self.methods if kinds_of(method)]
        found = [change.key for pair in self.pairs for change in pair.changes]
        for factor in self.factors:
            if not any(covers(factor, key) for key in found):
                notes.append(f"--vary {factor} does not differ between any two.")
        if not found:
            notes.append("The configurations do not differ: what is compared are chance and training seeds.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "decided": self.decided,
            "factors": self.factors,
            "notes": self.notes,
            "methods": [
                {
                    "label": method.label,
                    "path": str(method.path),
                    "mean": None if kinds_of(method) else asdict(mean_of(method)),
                    "kinds": kinds_values(method),
                    "missing": method.missing,
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
                                    "init_state_set": measured.init_state_set.hash,
                                }
                                for task, measured in seed.tasks.items()
                            },
                        }
                        for seed in method.seeds
                    ],
                }
                for method in self.methods
            ],
            "pairs": [
                {
                    "a": pair.a.label,
                    "b": pair.b.label,
                    "verdict": pair.verdict,
                    "sentence": pair.sentence,
                    "changes": [asdict(change) for change in pair.changes],
                    "copies": pair.copies,
                    "initial_states": {
                        task: {"a": states.num_a, "b": states.num_b, "shared": len(states.pairs)}
                        for task, states in pair.states.items()
                    },
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
    methods = read_methods(paths)
    check_factors(methods, factors)
    couples = list(combinations(methods, 2))
    tasks = methods[0].tasks
    overall = _results([(a, b, tasks) for a, b in couples])
    single = [(a, b, (task,)) for a, b in couples for task in tasks] if len(tasks) > 1 else []
    by_task = iter(_results(single))
    pairs: list[Pair] = []
    for (a, b), result in zip(couples, overall, strict=True):
        of_tasks = {task: next(by_task) for task in tasks} if single else {}
        pairs.append(
            Pair(
                a=a,
                b=b,
                changes=changes(a, b, factors),
                states={task: SharedStates.of(a.init_state_set(task), b.init_state_set(task)) for task in tasks},
                copies=_copies(a, b),
                result=result,
                by_task={task: found for task, found in of_tasks.items() if found},
            )
        )
    return Comparison(methods=methods, pairs=pairs, factors=list(factors))


def _copies(a: Method, b: Method) -> list[tuple[str, str]]:
    """Name the seeds of two arms that are the same evaluation."""
    return [(str(of_a.folder), str(of_b.folder)) for of_a, of_b in product(a.seeds, b.seeds) if of_a.is_same(of_b)]


def _results(comparisons: Sequence[tuple[Method, Method, tuple[str, ...]]]) -> list[Result | None]:
    """Make comparisons that share their errors; None where there are too few seeds for one."""
    possible = [comparison for comparison in comparisons if _enough(*comparison[:2])]
    p_values = np.array([_difference(*comparison, LEVEL)[0].p for comparison in possible])
    steps = zip(possible, holm(p_values), holm_levels(p_values, level=LEVEL), strict=True)
    found: dict[tuple[str, str, tuple[str, ...]], Result] = {}
    for (a, b, tasks), p_holm, level in steps:
        difference, means = _difference(a, b, tasks, float(level))
        found[a.label, b.label, tasks] = Result(difference=difference, p_holm=float(p_holm), means=means)
    return [found.get((a.label, b.label, tasks)) for a, b, tasks in comparisons]


def _enough(a: Method, b: Method) -> bool:
    """Whether there are seeds enough to compare methods, or just two checkpoints to compare; copies are not."""
    if _copies(a, b):
        return False
    return min(len(a.seeds), len(b.seeds)) >= MIN_SEEDS or len(a.seeds) == len(b.seeds) == 1


def are_paired(states: Sequence[SharedStates]) -> bool:
    """Whether two evaluations of these tasks are compared on their shared initial states only, in pairs.

    Where tasks would have different numbers of them, they would no longer count the same.
    """
    if all(of_task.are_all for of_task in states):
        return True
    return all(of_task.enough for of_task in states) and len({len(of_task.pairs) for of_task in states}) == 1


def _difference(a: Method, b: Method, tasks: tuple[str, ...], level: float) -> tuple[Difference, tuple[float, float]]:
    """Compare two arms; return the difference and the mean success of each, of the episodes that were compared."""
    of_a, of_b = list(a.successes(*tasks)), list(b.successes(*tasks))
    states = [SharedStates.of(a.init_state_set(task), b.init_state_set(task)) for task in tasks]
    paired = are_paired(states)
    if paired:
        for i, of_task in enumerate(states):
            in_a, in_b = np.array(of_task.pairs).T
            of_a[i], of_b[i] = of_a[i][:, in_a], of_b[i][:, in_b]
    means = tuple(float(np.mean([of_task.mean() for of_task in of_method])) for of_method in (of_a, of_b))
    if len(a.seeds) > 1:
        return compare_seeds(of_a, of_b, same_init_states=paired, level=level), (means[0], means[1])
    for method, of_method in ((a, of_a), (b, of_b)):
        if len({of_task.shape[1] for of_task in of_method}) > 1:
            raise ComparisonError(
                f"The tasks of {method.label} have different numbers of episodes: compare them one by one, by the folders "
                "in its evaluation."
            )
    # With as many episodes of each task, the rate of all is the mean of theirs; what varies between tasks makes tests
    # and intervals wider than they need be (see MeanRate).
    all_a, all_b = np.concatenate(of_a, axis=1)[0], np.concatenate(of_b, axis=1)[0]
    if paired:
        return compare_pairs(all_a, all_b, level=level), (means[0], means[1])
    rates = (Rate(int(successes.sum()), len(successes)) for successes in (all_a, all_b))
    return compare_rates(*rates, level=level), (means[0], means[1])


def mean_of(method: Method) -> Estimate:
    """Return the mean success of an arm's seeds, or that of its only checkpoint."""
    if len(method.seeds) > 1:
        return seeds_mean(method.successes(*method.tasks))
    tasks = [measured.successes for measured in method.seeds[0].tasks.values()]
    rate = MacroAverageRate(tuple(Rate(int(successes.sum()), len(successes)) for successes in tasks))
    low, high = rate.interval or (0.0, 1.0)
    return Estimate(value=rate.value, low=low, high=high)


def kinds_of(method: Method) -> tuple[list[float], list[float]] | None:
    """Divide the success of an arm's seeds, see :func:`act_kit.statistics.split_bimodal`."""
    return split_bimodal([seed.value for seed in method.seeds])


def kinds_of_seeds(method: Method) -> str:
    """Say of which kinds an arm's seeds are, and how many of a kind that none shows there may be; "" of one seed.

    A mean and its interval describe new seeds only if they are of the kind that was seen.
    """
    num = len(method.seeds)
    if num < 2:
        return ""
    kinds = kinds_of(method)
    if kinds:
        worse, better = (f"{len(side)} at {_span(side)}" for side in kinds)
        low, high = share_interval(len(kinds[0]), num)
        means = " and ".join(f"{100 * np.mean(side):.1f} %" for side in kinds)
        return (
            f"The seeds of {method.label} are of two kinds, {worse} and {better}: their mean describes neither. "
            f"{len(kinds[0])} of {num} collapsed: of new ones, {100 * low:.0f} to {100 * high:.0f} % may "
            f"(Clopper–Pearson, 95 %). Mean of each kind: {means}."
        )
    values = [seed.value for seed in method.seeds]
    if max(values) - min(values) >= GAP:
        return (
            f"The {num} seeds of {method.label} spread from {100 * min(values):.0f} to {100 * max(values):.0f} %, without "
            "falling into two kinds: read each of them, not their mean."
        )
    share = f"up to {100 * largest_unseen_share(num):.0f} % of new ones may"
    needed = seeds_to_bound(_BOUND)
    more = f"; {needed} such seeds would bound it at {100 * _BOUND:.0f} %" if num < needed else ""
    if max(values) < GAP:
        return f"All {num} seeds of {method.label} fail alike, but {share} be of another kind (Clopper–Pearson, 95 %{more})."
    return f"None of the {num} seeds of {method.label} collapsed, but {share} (Clopper–Pearson, 95 %{more})."


def kinds_values(method: Method) -> dict[str, Any] | None:
    """Return what :func:`kinds_of_seeds` says, as plain values; None of one seed."""
    num, kinds = len(method.seeds), kinds_of(method)
    if num < 2:
        return None
    if not kinds:
        return {"num": num, "collapsed": None, "largest_unseen_share": largest_unseen_share(num)}
    low, high = share_interval(len(kinds[0]), num)
    return {
        "num": num,
        "collapsed": {"num": len(kinds[0]), "low": low, "high": high},
        "means": [float(np.mean(side)) for side in kinds],
    }


def _success_text(method: Method, mean: float) -> str:
    """Return the success of an arm: its mean, or that of each kind of its seeds."""
    kinds = kinds_of(method)
    if kinds:
        return " and ".join(f"{100 * np.mean(side):.1f} % ({len(side)} of {len(method.seeds)} seeds)" for side in kinds)
    return f"{100 * mean:.1f} %"


def _span(rates: Sequence[float]) -> str:
    low, high = f"{100 * min(rates):.0f}", f"{100 * max(rates):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def points(difference: Difference) -> str:
    """Return a difference with its interval, and the interval's confidence where that is not 95 %."""
    value, low, high = (f"{100 * x:+.1f}" for x in (difference.value, difference.low, difference.high))
    confidence = "" if difference.level == LEVEL else f" at {100 * (1 - difference.level):.1f} %"
    return f"{value} points [{low}, {high}]{confidence}"
