"""Comparison of methods by their evaluations, with a verdict only where the data support one.

Configurations are compared first: an option that differs and was not declared as a factor may be the cause of any
difference, and the verdict is CONFOUNDED. Then follow the tests of :mod:`act_kit.statistics`: of methods, if each has
three or more training seeds, otherwise of two checkpoints. Holm's method controls the error over several comparisons:
over all pairs of methods, and separately over all pairs and tasks. The interval of a difference is at the level of its
test, so it never contradicts the verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, product, starmap
from pathlib import Path
from typing import Any

import numpy as np

from act_kit import statistics
from act_kit.comparison.experiments import ConfigDifference, Method, changes, check_factors, covers, read_methods
from act_kit.comparison.modes import bimodal_modes, describe_modes, mean_of, modes_to_dict, success_text
from act_kit.errors import ComparisonError
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.results import Evaluation
from act_kit.statistics import MIN_SEEDS, Difference, Rate

LEVEL = 0.05

MIN_SHARED = 20
"""Minimum number of shared initial states for a paired test, if they are also half of the smaller evaluation's.

With fewer, an unpaired test of all episodes has more power.
"""


ALL_TASKS = ""
"""Key of the result over all tasks."""


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
        """``better`` or ``worse``, for the second method, or ``no difference shown``."""
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class SharedStates:
    """Initial states of one task in two evaluations.

    Attributes:
        num_a, num_b: Number of initial states of each.
        pairs: Indices of the shared ones in a and in b, int64 (P, 2).
    """

    num_a: int
    num_b: int
    pairs: np.ndarray

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
        array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return cls(num_a=len(a.init_states), num_b=len(b.init_states), pairs=array)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Comparison of two methods.

    Attributes:
        a, b: Methods; the verdict states if b is better or worse than a.
        changes: Differences of their configurations.
        states: Shared initial states, by task.
        copies: Folders of the seeds of a and b that are the same evaluation.
        results: Results by task, and over all tasks (:data:`ALL_TASKS`); none if there are too few seeds, or copies.
    """

    a: Method
    b: Method
    changes: list[ConfigDifference]
    states: dict[str, SharedStates]
    copies: list[tuple[str, str]]
    results: dict[str, Result] = field(default_factory=dict)

    @classmethod
    def of(cls, a: Method, b: Method, factors: Sequence[str]) -> Pair:
        """Find what two methods share and what differs; the results are added later."""
        states: dict[str, SharedStates] = {}
        for task, evaluation in a.seeds[0].tasks.items():
            states[task] = SharedStates.of(evaluation.init_state_set, b.seeds[0].tasks[task].init_state_set)
        copies: list[tuple[str, str]] = []
        for one, other in product(a.seeds, b.seeds):
            if one.is_same(other):
                copies.append((str(one.folder), str(other.folder)))
        return cls(a=a, b=b, changes=changes(a, b, factors), states=states, copies=copies)

    @property
    def result(self) -> Result | None:
        """Result over all tasks."""
        return self.results.get(ALL_TASKS)

    @property
    def by_task(self) -> dict[str, Result]:
        """Result of each task, if there are several."""
        by_task = dict(self.results)
        by_task.pop(ALL_TASKS, None)
        return by_task

    @property
    def is_testable(self) -> bool:
        """True if both have enough seeds, or one seed each, and none is a copy of another."""
        num_a, num_b = len(self.a.seeds), len(self.b.seeds)
        return not self.copies and (min(num_a, num_b) >= MIN_SEEDS or num_a == num_b == 1)

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
        states = self.states.values()
        a_T, b_T, shared_T = _count_states(states)
        if ((shared_T == a_T) & (shared_T == b_T)).all():
            return ""
        num_a, num_b, num_shared = a_T.sum(), b_T.sum(), shared_T.sum()
        text = (
            f"{self.a.label} and {self.b.label} were evaluated from different initial states: {num_shared} are shared, "
            f"of {num_a} and {num_b}."
        )
        if are_paired(states):
            return f"{text} Only the shared ones are compared, in pairs."
        return (
            f"{text} A paired test requires {MIN_SHARED} shared ones that are half of the smaller evaluation's: all "
            "episodes are compared, unpaired. Fix: evaluate both with the same --seed and --episodes."
        )

    @property
    def sentence(self) -> str:
        """Sentence with the verdict, the numbers and the fix."""
        a, b = self.a.label, self.b.label
        if self.copies:
            copies = "; ".join(map(" and ".join, self.copies))
            return (
                f"No verdict on {a} and {b}: they are not independent. The same evaluation, with every number of every "
                f"episode equal: {copies}. Fix: give evaluations of different checkpoints: act eval RUN"
            )
        if self.confounds:
            confounds = "; ".join(map(str, self.confounds))
            return (
                f"CONFOUNDED: {a} and {b} differ in options that were not declared, and each may be the cause: "
                f"{confounds}. Fix: make them equal, or declare what you compare: --vary KEY"
            )
        few_seeds: list[str] = []
        for method in (self.a, self.b):
            if len(method.seeds) < MIN_SEEDS:
                few_seeds.append(f"{method.label} has {len(method.seeds)}")
        if self.result is None:
            return (
                f"No verdict on {a} and {b}: {', '.join(few_seeds)} of the {MIN_SEEDS} training seeds that a "
                "comparison of methods requires. Fix: train more seeds: act train --seeds 3"
            )
        sentences = [self._result_text(self.result)]
        by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
        for task, result in self.by_task.items():
            by_verdict[result.verdict].append(task)
        for verdict, tasks in by_verdict.items():
            if tasks:
                sentences.append(f"{verdict.capitalize()}: {', '.join(tasks)}.")
        if few_seeds:
            sentences.append(
                "This holds for these two checkpoints only: one training seed per method is too few to compare "
                "methods. To compare methods: act train --seeds 3"
            )
        sentences += filter(None, [describe_modes(self.a), describe_modes(self.b)])
        return " ".join(sentences)

    def _result_text(self, result: Result) -> str:
        a, b, difference = self.a, self.b, result.difference
        p = "p < 0.001" if result.p_holm < 0.001 else f"p = {result.p_holm:.3g}"
        numbers = (
            f"success {success_text(b, result.means[1])} versus {success_text(a, result.means[0])}, a difference of "
            f"{points(difference)} ({difference.test}, {p}{', by Holm' if result.p_holm != difference.p else ''})"
        )
        if result.verdict != "no difference shown":
            return f"{b.label} is {result.verdict} than {a.label}: {numbers}."
        power = f"the minimum detectable difference is {100 * difference.detectable:.0f} points, at a power of 80 %"
        if difference.detectable >= 1:
            power = f"with so few {'seeds' if len(a.seeds) > 1 else 'episodes'}, no difference is detectable"
        return f"No difference shown between {b.label} and {a.label}: {numbers}; {power}."

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        tasks: dict[str, Any] = {}
        for task, result in self.by_task.items():
            tasks[task] = {"verdict": result.verdict, **asdict(result)}
        initial_states: dict[str, Any] = {}
        for task, states in self.states.items():
            initial_states[task] = {"a": states.num_a, "b": states.num_b, "shared": len(states.pairs)}
        return {
            "a": self.a.label,
            "b": self.b.label,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "changes": list(map(asdict, self.changes)),
            "copies": self.copies,
            "initial_states": initial_states,
            "result": self.result and asdict(self.result),
            "tasks": tasks,
        }


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
        notes: list[str] = []
        num_missing = 0
        for method in self.methods:
            notes += method.problems
            num_missing += len(method.missing)
        if num_missing:
            notes.append("Missing seeds may be failed ones: without them, a method looks better than it is.")
        changed_keys: list[str] = []
        for pair in self.pairs:
            notes += filter(None, [pair.states_note])
            changed_keys += [change.key for change in pair.changes]
        for method in filter(bimodal_modes, self.methods):
            notes.append(describe_modes(method))
        for factor in self.factors:
            if not covers(factor, changed_keys):
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
            "methods": list(map(_method_values, self.methods)),
            "pairs": list(map(Pair.to_dict, self.pairs)),
        }


def _method_values(method: Method) -> dict[str, Any]:
    seeds: list[dict[str, Any]] = []
    for seed in method.seeds:
        tasks: dict[str, Any] = {}
        for task, evaluation in seed.tasks.items():
            tasks[task] = {
                "successes": evaluation.success.successes,
                "num": evaluation.success.num,
                "crashes": evaluation.crashes,
                "init_state_set": evaluation.init_state_set.hash,
            }
        seeds.append({"name": seed.name, "evaluation": str(seed.folder), "success": seed.value, "tasks": tasks})
    return {
        "label": method.label,
        "path": str(method.path),
        "mean": None if bimodal_modes(method) else asdict(mean_of(method)),
        "kinds": modes_to_dict(method),
        "missing": method.missing,
        "seeds": seeds,
    }


def compare(methods: Sequence[Path] | Mapping[str, Sequence[Evaluation]], factors: Sequence[str] = ()) -> Comparison:
    """Compare two or more methods that differ in ``factors``.

    Args:
        methods: Paths of evaluations, runs, or folders of runs; or evaluations of one task by the names of the methods,
            one for each training seed.
        factors: Options that are expected to differ, as dotted keys.

    Raises:
        ComparisonError: A method is missing, or they cannot be compared.
        ConfigError: A factor does not exist.
    """
    if len(methods) < 2:
        raise ComparisonError("A comparison requires two or more evaluations or runs. Fix: act compare RUN RUN")
    all_methods = list(starmap(Method.of, methods.items())) if isinstance(methods, Mapping) else read_methods(methods)
    first = all_methods[0]
    for method in all_methods[1:]:
        if set(method.tasks) != set(first.tasks):
            raise ComparisonError(
                f"{first.label} was evaluated on {', '.join(first.tasks)}; {method.label} on "
                f"{', '.join(method.tasks)}: the same tasks were expected. Fix: to compare one task of an evaluation "
                "of several, give its folder."
            )
    check_factors(all_methods, factors)
    pairs = [Pair.of(a, b, factors) for a, b in combinations(all_methods, 2)]
    _test(pairs, [ALL_TASKS])
    _test(pairs, first.tasks if len(first.tasks) > 1 else ())
    return Comparison(methods=all_methods, pairs=pairs, factors=list(factors))


def _test(pairs: Sequence[Pair], tasks: Sequence[str]) -> None:
    """Test all pairs on each of the tasks, with Holm's correction over all tests, and add the results to the pairs."""
    tests: list[tuple[Pair, str]] = []
    p_values: list[float] = []
    for pair, task in product(pairs, tasks):
        if pair.is_testable:
            tests.append((pair, task))
            p_values.append(_difference(pair, task, LEVEL)[0].p)
    adjusted = statistics.holm(np.array(p_values))
    levels = statistics.holm_levels(np.array(p_values), level=LEVEL)
    for (pair, task), p_holm, level in zip(tests, adjusted, levels, strict=True):
        difference, means = _difference(pair, task, float(level))
        pair.results[task] = Result(difference=difference, p_holm=float(p_holm), means=means)


def are_paired(states: Collection[SharedStates]) -> bool:
    """Return True if two evaluations of these tasks are compared on their shared initial states only, in pairs.

    This requires that a paired test of the shared ones has more power than an unpaired test of all, and that the tasks
    share equally many initial states, because otherwise they would have different weights.
    """
    a_T, b_T, shared_T = _count_states(states)
    are_all_T = (shared_T == a_T) & (shared_T == b_T)
    are_enough_T = are_all_T | (shared_T >= np.maximum(MIN_SHARED, np.minimum(a_T, b_T) / 2))
    return bool(are_all_T.all() or (are_enough_T.all() and np.ptp(shared_T) == 0))


def _count_states(states: Collection[SharedStates]) -> np.ndarray:
    """Return the numbers of initial states in a, in b and in both, int64 (3, T), for T tasks."""
    return np.array([(shared.num_a, shared.num_b, len(shared.pairs)) for shared in states]).T


def _difference(pair: Pair, task: str, level: float) -> tuple[Difference, tuple[float, float]]:
    """Test the difference of two methods; return it and the mean success of each over the compared episodes."""
    a, b = pair.a, pair.b
    states = pair.states if task == ALL_TASKS else {task: pair.states[task]}
    paired = are_paired(states.values())
    successes_a: list[np.ndarray] = []
    successes_b: list[np.ndarray] = []
    rates_a: list[float] = []
    rates_b: list[float] = []
    for name, shared in states.items():
        indices_a, indices_b = shared.pairs.T if paired else (slice(None), slice(None))
        successes_a.append(a.successes(name)[:, indices_a])
        successes_b.append(b.successes(name)[:, indices_b])
        rates_a.append(successes_a[-1].mean())
        rates_b.append(successes_b[-1].mean())
    means = float(np.mean(rates_a)), float(np.mean(rates_b))
    if len(a.seeds) > 1:
        return statistics.compare_seeds(successes_a, successes_b, same_init_states=paired, level=level), means
    for method, successes in ((a, successes_a), (b, successes_b)):
        if len({each.shape for each in successes}) > 1:
            raise ComparisonError(
                f"The tasks of {method.label} have different numbers of episodes. Fix: compare the tasks one by one, "
                "by the folders in its evaluation."
            )
    # With equally many episodes per task, the rate of all episodes is the mean of the rates of the tasks. The variance
    # between tasks makes tests and intervals wider than necessary (see MacroAverageRate).
    all_a, all_b = np.concatenate(successes_a, axis=1)[0], np.concatenate(successes_b, axis=1)[0]
    if paired:
        return statistics.compare_pairs(all_a, all_b, level=level), means
    rate_a, rate_b = Rate(int(all_a.sum()), len(all_a)), Rate(int(all_b.sum()), len(all_b))
    return statistics.compare_rates(rate_a, rate_b, level=level), means


def points(difference: Difference) -> str:
    """Return a difference with its interval, and the confidence of the interval if it is not 95 %."""
    confidence = "" if difference.level == LEVEL else f" at {100 * (1 - difference.level):.1f} %"
    return (
        f"{100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]{confidence}"
    )
