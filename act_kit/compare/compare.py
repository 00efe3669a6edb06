"""Comparison of methods by their evaluations, with a verdict only where the data support one.

Configurations are compared first: an option that differs and was not declared as a factor may be the cause of any
difference, and the verdict is CONFOUNDED. Then follow the tests of :mod:`act_kit.statistics`: of methods, if each has
three or more training seeds, otherwise of two checkpoints. Holm's method controls the error over several comparisons:
over all pairs of methods, and separately over all pairs and tasks. The interval of a difference is at the level of its
test, so it never contradicts the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.compare.experiments import (
    ConfigDifference,
    Method,
    SeedResult,
    changes,
    check_factors,
    covers,
    read_methods,
)
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
"""Minimum number of shared initial states for a paired test, if they are also half of the smaller evaluation's.

With fewer, an unpaired test of all episodes has more power.
"""

_BOUND = 0.1
"""Fraction of collapsing seeds that a user may want to rule out."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Test of the difference between two methods.

    Attributes:
        difference: Success of the second method minus that of the first, averaged over the tasks; its interval is at
            the level of Holm's method.
        p_holm: P-value of the difference, adjusted for all comparisons of its kind.
        means: Success rates of the two, over the compared episodes.
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
        num_a, num_b: Number of initial states of each.
        pairs: Indices of the shared ones in a and in b.
    """

    num_a: int
    num_b: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def are_all(self) -> bool:
        """True if both evaluations have the same initial states."""
        return len(self.pairs) == self.num_a == self.num_b

    @property
    def enough(self) -> bool:
        """True if a paired test of the shared ones has more power than an unpaired test of all."""
        return self.are_all or len(self.pairs) >= max(MIN_SHARED, min(self.num_a, self.num_b) / 2)

    @classmethod
    def of(cls, a: InitialStateSet, b: InitialStateSet) -> SharedStates:
        """Find the bit-exact equal initial states; one that occurs twice in both is shared twice."""
        indices: dict[tuple[float, ...], list[int]] = {}
        for j, init_state in enumerate(b.init_states):
            indices.setdefault(init_state.rand_vec, []).append(j)
        pairs: list[tuple[int, int]] = []
        for i, init_state in enumerate(a.init_states):
            if indices.get(init_state.rand_vec):
                pairs.append((i, indices[init_state.rand_vec].pop(0)))
        return cls(num_a=len(a.init_states), num_b=len(b.init_states), pairs=tuple(pairs))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Comparison of two methods.

    Attributes:
        a, b: Methods; the verdict states if b is better or worse than a.
        changes: Differences of their configurations.
        states: Shared initial states, by task.
        copies: Folders of the seeds of a and b that are the same evaluation.
        result: Result over all tasks; None if there are too few seeds, or copies.
        by_task: Result of each task, if there are several.
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
        """Configuration differences that were not declared."""
        return [change for change in self.changes if not change.declared]

    @property
    def verdict(self) -> str:
        """One of SAME EVALUATION, CONFOUNDED, too few seeds, better, worse, no difference shown."""
        if self.copies:
            return "SAME EVALUATION"
        return "CONFOUNDED" if self.confounds else self.result.verdict if self.result else "too few seeds"

    @property
    def decided(self) -> bool:
        """True if there is a verdict."""
        return not self.confounds and self.result is not None

    @property
    def states_note(self) -> str:
        """Note on different initial states and how they are compared; "" if they are the same."""
        if all(states.are_all for states in self.states.values()):
            return ""
        num_shared = sum(len(states.pairs) for states in self.states.values())
        num_a = sum(states.num_a for states in self.states.values())
        num_b = sum(states.num_b for states in self.states.values())
        text = (
            f"{self.a.label} and {self.b.label} were evaluated from different initial states: {num_shared} are shared, "
            f"of {num_a} and {num_b}."
        )
        if are_paired(list(self.states.values())):
            return f"{text} Only the shared ones are compared, in pairs."
        return (
            f"{text} A paired test requires {MIN_SHARED} shared ones that are half of the smaller evaluation's: all "
            "episodes are compared, unpaired. Fix: evaluate both with the same --seed and --episodes."
        )

    @cached_property
    def sentence(self) -> str:
        """Sentence with the verdict, the numbers and the fix."""
        a, b = self.a.label, self.b.label
        if self.copies:
            copies = "; ".join(f"{folder_a} and {folder_b}" for folder_a, folder_b in self.copies)
            return (
                f"No verdict on {a} and {b}: they are not independent. The same evaluation, with every number of every "
                f"episode equal: {copies}. Fix: give evaluations of different checkpoints: act eval RUN"
            )
        if self.confounds:
            confounds = "; ".join(f"{change.key} ({change.a} | {change.b})" for change in self.confounds)
            return (
                f"CONFOUNDED: {a} and {b} differ in options that were not declared, and each may be the cause: "
                f"{confounds}. Fix: make them equal, or declare what you compare: --vary KEY"
            )
        few_seeds = [method for method in (self.a, self.b) if len(method.seeds) < MIN_SEEDS]
        if self.result is None:
            counts = ", ".join(f"{method.label} has {len(method.seeds)}" for method in few_seeds)
            return (
                f"No verdict on {a} and {b}: {counts} of the {MIN_SEEDS} training seeds that a comparison of methods "
                "requires. Fix: train more seeds: act train --seeds 3"
            )
        text = self._result_text(self.result)
        for verdict in ("better", "worse", "no difference shown"):
            tasks = [task for task, result in self.by_task.items() if result.verdict == verdict]
            if tasks:
                text += f" {verdict.capitalize()}: {', '.join(tasks)}."
        if few_seeds:
            text += (
                " This holds for these two checkpoints only: one training seed per method is too few to compare "
                "methods. To compare methods: act train --seeds 3"
            )
        notes = " ".join(filter(None, (kinds_of_seeds(self.a), kinds_of_seeds(self.b))))
        return f"{text} {notes}".rstrip()

    def _result_text(self, result: Result) -> str:
        difference = result.difference
        rates = [_success_text(method, mean) for method, mean in zip((self.a, self.b), result.means, strict=True)]
        correction = ", by Holm" if result.p_holm != difference.p else ""
        p = "p < 0.001" if result.p_holm < 0.001 else f"p = {result.p_holm:.3f}"
        numbers = (
            f"success {rates[1]} versus {rates[0]}, a difference of {points(difference)} ({difference.test}, "
            f"{p}{correction})"
        )
        if result.verdict != "no difference shown":
            return f"{self.b.label} is {result.verdict} than {self.a.label}: {numbers}."
        power = f"the minimum detectable difference is {100 * difference.detectable:.0f} points, at a power of 80 %"
        if difference.detectable >= 1:
            power = f"with so few {'seeds' if len(self.a.seeds) > 1 else 'episodes'}, no difference is detectable"
        return f"No difference shown between {self.b.label} and {self.a.label}: {numbers}; {power}."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of all pairs of methods.

    Attributes:
        methods: Methods in the given order; the first is the reference.
        pairs: Comparisons of every two of them.
        factors: Declared options, which are expected to differ.
    """

    methods: list[Method]
    pairs: list[Pair]
    factors: list[str]

    def __repr__(self) -> str:
        return "\n".join([*self.notes, *(pair.sentence for pair in self.pairs)])

    @property
    def decided(self) -> bool:
        """True if every pair has a verdict."""
        return all(pair.decided for pair in self.pairs)

    @property
    def notes(self) -> list[str]:
        """Notes in addition to the verdicts: missing seeds, crashes, different initial states, bimodal seeds."""
        notes = [problem for method in self.methods for problem in method.problems]
        if any(method.missing for method in self.methods):
            notes.append("Missing seeds may be failed ones: without them, a method looks better than it is.")
        notes += [pair.states_note for pair in self.pairs if pair.states_note]
        notes += [kinds_of_seeds(method) for method in self.methods if kinds_of(method)]
        changed_keys = [change.key for pair in self.pairs for change in pair.changes]
        for factor in self.factors:
            if not any(covers(factor, key) for key in changed_keys):
                notes.append(f"--vary {factor} does not differ between any two.")
        if not changed_keys:
            notes.append("The configurations do not differ: only chance and training seeds are compared.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "decided": self.decided,
            "factors": self.factors,
            "notes": self.notes,
            "methods": [_method_values(method) for method in self.methods],
            "pairs": [_pair_values(pair) for pair in self.pairs],
        }


def _method_values(method: Method) -> dict[str, Any]:
    return {
        "label": method.label,
        "path": str(method.path),
        "mean": None if kinds_of(method) else asdict(mean_of(method)),
        "kinds": kinds_values(method),
        "missing": method.missing,
        "seeds": [_seed_values(seed) for seed in method.seeds],
    }


def _seed_values(seed: SeedResult) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for name, task_result in seed.tasks.items():
        tasks[name] = {
            "successes": task_result.success.successes,
            "num": task_result.success.num,
            "crashes": task_result.crashes,
            "init_state_set": task_result.init_state_set.hash,
        }
    return {"name": seed.name, "evaluation": str(seed.folder), "success": seed.value, "tasks": tasks}


def _pair_values(pair: Pair) -> dict[str, Any]:
    initial_states: dict[str, Any] = {}
    for task, states in pair.states.items():
        initial_states[task] = {"a": states.num_a, "b": states.num_b, "shared": len(states.pairs)}
    tasks: dict[str, Any] = {}
    for task, result in pair.by_task.items():
        tasks[task] = {"verdict": result.verdict, **asdict(result)}
    return {
        "a": pair.a.label,
        "b": pair.b.label,
        "verdict": pair.verdict,
        "sentence": pair.sentence,
        "changes": [asdict(change) for change in pair.changes],
        "copies": pair.copies,
        "initial_states": initial_states,
        "result": pair.result and asdict(pair.result),
        "tasks": tasks,
    }


def compare(paths: Sequence[Path], factors: Sequence[str]) -> Comparison:
    """Compare two or more methods at ``paths`` that differ in ``factors``.

    Raises:
        ComparisonError: A method is missing, or they cannot be compared.
        ConfigError: A factor does not exist.
    """
    if len(paths) < 2:
        raise ComparisonError("A comparison requires two or more evaluations or runs. Fix: act compare RUN RUN")
    return compare_methods(read_methods(paths), factors)


def compare_methods(methods: Sequence[Method], factors: Sequence[str]) -> Comparison:
    """Compare two or more methods that differ in ``factors``; see :func:`compare`."""
    check_factors(methods, factors)
    couples = list(combinations(methods, 2))
    tasks = methods[0].tasks
    overall = _results([(a, b, tasks) for a, b in couples])
    single_task = [(a, b, (task,)) for (a, b), task in product(couples, tasks)] if len(tasks) > 1 else []
    task_results = iter(_results(single_task))
    pairs: list[Pair] = []
    for (a, b), result in zip(couples, overall, strict=True):
        by_task = {task: next(task_results) for task in tasks} if single_task else {}
        pairs.append(
            Pair(
                a=a,
                b=b,
                changes=changes(a, b, factors),
                states={task: SharedStates.of(a.init_state_set(task), b.init_state_set(task)) for task in tasks},
                copies=_copies(a, b),
                result=result,
                by_task={task: task_result for task, task_result in by_task.items() if task_result},
            )
        )
    return Comparison(methods=list(methods), pairs=pairs, factors=list(factors))


def _copies(a: Method, b: Method) -> list[tuple[str, str]]:
    """Return the folders of the seeds of two methods that are the same evaluation."""
    return [(str(one.folder), str(other.folder)) for one, other in product(a.seeds, b.seeds) if one.is_same(other)]


def _results(comparisons: Sequence[tuple[Method, Method, tuple[str, ...]]]) -> list[Result | None]:
    """Test comparisons, with Holm's correction over all of them; None where there are too few seeds."""
    possible = [comparison for comparison in comparisons if _is_testable(*comparison[:2])]
    p_values = np.array([_difference(*comparison, LEVEL)[0].p for comparison in possible])
    steps = zip(possible, holm(p_values), holm_levels(p_values, level=LEVEL), strict=True)
    results: dict[tuple[str, str, tuple[str, ...]], Result] = {}
    for (a, b, tasks), p_holm, level in steps:
        difference, means = _difference(a, b, tasks, float(level))
        results[a.label, b.label, tasks] = Result(difference=difference, p_holm=float(p_holm), means=means)
    return [results.get((a.label, b.label, tasks)) for a, b, tasks in comparisons]


def _is_testable(a: Method, b: Method) -> bool:
    """Return True if both have enough seeds, or one seed each, and none is a copy of another."""
    if _copies(a, b):
        return False
    return min(len(a.seeds), len(b.seeds)) >= MIN_SEEDS or len(a.seeds) == len(b.seeds) == 1


def are_paired(states: Sequence[SharedStates]) -> bool:
    """Return True if two evaluations of these tasks are compared on their shared initial states only, in pairs.

    The tasks must share equally many initial states, because otherwise they would have different weights.
    """
    if all(task_states.are_all for task_states in states):
        return True
    numbers = {len(task_states.pairs) for task_states in states}
    return all(task_states.enough for task_states in states) and len(numbers) == 1


def _difference(a: Method, b: Method, tasks: tuple[str, ...], level: float) -> tuple[Difference, tuple[float, float]]:
    """Test the difference of two methods; return it and the mean success of each over the compared episodes."""
    successes_a, successes_b = list(a.successes(*tasks)), list(b.successes(*tasks))
    states = [SharedStates.of(a.init_state_set(task), b.init_state_set(task)) for task in tasks]
    paired = are_paired(states)
    if paired:
        for i, task_states in enumerate(states):
            indices_a, indices_b = np.array(task_states.pairs).T
            successes_a[i], successes_b[i] = successes_a[i][:, indices_a], successes_b[i][:, indices_b]
    means = (
        float(np.mean([successes.mean() for successes in successes_a])),
        float(np.mean([successes.mean() for successes in successes_b])),
    )
    if len(a.seeds) > 1:
        return compare_seeds(successes_a, successes_b, same_init_states=paired, level=level), means
    for method, of_tasks in ((a, successes_a), (b, successes_b)):
        if len({successes.shape[1] for successes in of_tasks}) > 1:
            raise ComparisonError(
                f"The tasks of {method.label} have different numbers of episodes. Fix: compare the tasks one by one, "
                "by the folders in its evaluation."
            )
    # With equally many episodes per task, the rate of all episodes is the mean of the rates of the tasks. The variance
    # between tasks makes tests and intervals wider than necessary (see MacroAverageRate).
    all_a, all_b = np.concatenate(successes_a, axis=1)[0], np.concatenate(successes_b, axis=1)[0]
    if paired:
        return compare_pairs(all_a, all_b, level=level), means
    rates = (Rate(int(successes.sum()), len(successes)) for successes in (all_a, all_b))
    return compare_rates(*rates, level=level), means


def mean_of(method: Method) -> Estimate:
    """Return the mean success of a method's seeds, or that of its only checkpoint."""
    if len(method.seeds) > 1:
        return seeds_mean(method.successes(*method.tasks))
    results = method.seeds[0].tasks.values()
    rate = MacroAverageRate(tuple(task.success for task in results))
    low, high = rate.interval or (0.0, 1.0)
    return Estimate(value=rate.value, low=low, high=high)


def kinds_of(method: Method) -> tuple[list[float], list[float]] | None:
    """Split the success rates of bimodal seeds into the lower and the upper mode; None if they are not bimodal.

    See :func:`act_kit.statistics.split_bimodal`.
    """
    return split_bimodal([seed.value for seed in method.seeds])


def kinds_of_seeds(method: Method) -> str:
    """Describe the modes of a method's seeds, and bound the fraction of seeds of an unseen mode; "" for one seed.

    A mean and its interval describe new seeds only if these belong to the observed mode.
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
            f"The seeds of {method.label} are bimodal, {worse} and {better}: their mean describes neither mode. "
            f"{len(kinds[0])} of {num} collapsed: {100 * low:.0f} to {100 * high:.0f} % of new seeds may collapse "
            f"(Clopper–Pearson, 95 %). Mean of each mode: {means}."
        )
    values = [seed.value for seed in method.seeds]
    if max(values) - min(values) >= GAP:
        return (
            f"The {num} seeds of {method.label} range from {100 * min(values):.0f} to {100 * max(values):.0f} % "
            "without two separate modes: read each of them, not their mean."
        )
    share = f"up to {100 * largest_unseen_share(num):.0f} % of new seeds may"
    needed = seeds_to_bound(_BOUND)
    source = "Clopper–Pearson, 95 %"
    if num < needed:
        source += f"; {needed} such seeds would bound it at {100 * _BOUND:.0f} %"
    if max(values) < GAP:
        return (
            f"All {num} seeds of {method.label} have a low success rate, but {share} belong to another mode ({source})."
        )
    return f"None of the {num} seeds of {method.label} collapsed, but {share} collapse ({source})."


def kinds_values(method: Method) -> dict[str, Any] | None:
    """Return the content of :func:`kinds_of_seeds` as plain values; None for one seed."""
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
    """Return the success of a method: its mean, or that of each mode of its seeds."""
    kinds = kinds_of(method)
    if kinds:
        return " and ".join(f"{100 * np.mean(side):.1f} % ({len(side)} of {len(method.seeds)} seeds)" for side in kinds)
    return f"{100 * mean:.1f} %"


def _span(rates: Sequence[float]) -> str:
    low, high = f"{100 * min(rates):.0f}", f"{100 * max(rates):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def points(difference: Difference) -> str:
    """Return a difference with its interval, and the confidence of the interval if it is not 95 %."""
    value, low, high = (f"{100 * x:+.1f}" for x in (difference.value, difference.low, difference.high))
    confidence = "" if difference.level == LEVEL else f" at {100 * (1 - difference.level):.1f} %"
    return f"{value} points [{low}, {high}]{confidence}"
