"""Results of an evaluation, and the summary that follows from its episodes.

:mod:`act_kit.eval.files` writes and reads them. A summary is computed by the same code from episodes that were just run
and from episodes that were read from a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from act_kit.config.evaluation import ProtocolConfig
from act_kit.eval.distance_to_demos import Bin, divide
from act_kit.eval.failure_modes import FAILURE_MODES, FailureMode, failure_mode
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.stages import Stage, furthest_stage, stage_counts
from act_kit.files import quoted
from act_kit.options import build
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import stack
from act_kit.sim.tasks import Difficulty, get_task
from act_kit.statistics import GroupAverageRate, MacroAverageRate, Rate
from act_kit.text import name_values

FAR_Z = 15.0
"""Number of standard deviations from the mean of the demonstrated states. Demonstrations themselves reach 2 to 5."""

SHARED_PROVENANCE = ("horizon", "chunking", "policy_step", "versions", "device", "training")
"""Keys of the provenance that are the same for all tasks of an evaluation."""

PROVENANCE = ("success_rule", "engine", "dataset", "weights", *SHARED_PROVENANCE)
"""Keys of a summary that do not follow from its episodes."""

OPTIONAL = ("agent", "protocol", "delay")
"""Keys of a summary that may be missing: ``agent``, what was evaluated, of a policy; the others, of old evaluations."""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """Result of one episode; the fields are the columns of ``episodes.csv``.

    Attributes:
        success_once, success_at_end: Success at any step, the benchmark's definition, and at the last step.
        success_step: First successful step, or None.
        initial_distance, min_distance, final_distance: Distance to the goal, in meters (radians for lever-pull).
        distance_to_nearest_demo: Distance of the initial state to the nearest demonstrated one, in box widths, over the
            informative dimensions; None if no demonstrated initial state is known.
        largest_z: Largest normalized coordinate of any state that the policy was queried with; None if the agent does
            not normalize.
        recognized_task: Most probable task by the first state, of a policy that recognizes its task; None of others.
        clip_fraction: Fraction of the planned action values outside [-1, 1].
        furthest_stage: Last stage of the task that was reached, or None.
        failure_mode: Failure mode; None if the episode succeeded.
        num_steps: Number of steps.
        crash: Error message of the simulation or of the agent, or None.
    """

    success_once: bool
    success_at_end: bool
    success_step: int | None
    initial_distance: float
    min_distance: float
    final_distance: float
    distance_to_nearest_demo: float | None
    largest_z: float | None
    recognized_task: str | None = None
    clip_fraction: float
    furthest_stage: Stage | None
    failure_mode: FailureMode | None
    num_steps: int
    crash: str | None

    @classmethod
    def of(
        cls, outcome: Episode, *, distance_to_nearest_demo: float | None = None, largest_z: float | None = None
    ) -> EpisodeResult:
        """Derive the result of an episode from its record."""
        distances = outcome.distances
        return cls(
            success_once=outcome.success_once,
            success_at_end=outcome.success_at_end,
            success_step=outcome.success_step,
            initial_distance=float(distances[0]),
            min_distance=float(distances.min()),
            final_distance=float(distances[-1]),
            distance_to_nearest_demo=distance_to_nearest_demo,
            largest_z=largest_z,
            clip_fraction=outcome.clip_fraction,
            furthest_stage=furthest_stage(outcome),
            failure_mode=failure_mode(outcome),
            num_steps=len(outcome),
            crash=outcome.crash,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The episodes of a policy or another agent on one task, and those of its baselines.

    Attributes:
        init_state_set: Initial states.
        episodes: Results, one per initial state.
        baselines: Success rates by name: ``expert``, ``zero actions`` and ``random`` from the first of the same initial
            states, and the policy itself from ``demonstrated initial states``.
        demonstrated: Demonstrated initial states of the task, float64 (N, D); N = 0 if they are unknown, as in an
            evaluation that was read from its files.
        provenance: Plain values with the keys :data:`PROVENANCE` and :data:`OPTIONAL`: the conditions of the evaluation
            and of the training.
        outcomes: Records of the episodes; empty in an evaluation that was read from its files.
        folder: Folder that it was read from.
    """

    init_state_set: InitialStateSet
    episodes: list[EpisodeResult]
    baselines: dict[str, Rate]
    demonstrated: np.ndarray
    provenance: dict[str, Any]
    outcomes: list[Episode] = field(default_factory=list)
    folder: Path = Path()

    def __repr__(self) -> str:
        modes = name_values(self.failures) or "none"
        lines = [f"{self.task}, {len(self.episodes)} {self.init_state_set.kind} initial states: success {self.success}"]
        for name, rate in self.baselines.items():
            lines.append(f"    baseline, {name}: {rate}")
        if self.recognized:
            lines.append(f"    task recognized: {self.recognized} ({name_values(self.recognized_tasks)})")
        return "\n".join([*lines, f"    failure modes: {modes}"])

    @property
    def task(self) -> str:
        """Meta-World task."""
        return self.init_state_set.task

    @property
    def protocol(self) -> ProtocolConfig:
        """Protocol; Meta-World's if none is recorded."""
        values = dict(self.provenance.get("protocol", {}))
        values.pop("changed", None)
        return build(ProtocolConfig, values) if values else ProtocolConfig()

    @property
    def delay(self) -> int:
        """Steps by which the agent's answers were delayed."""
        return int(self.provenance.get("delay", 0))

    @property
    def init_states(self) -> np.ndarray:
        """Initial states, float64 (N, D)."""
        return stack(self.init_state_set.init_states)

    def column(self, name: str) -> list[Any]:
        """Return a field of every :class:`EpisodeResult`."""
        return [getattr(episode, name) for episode in self.episodes]

    def _numbers(self, name: str) -> np.ndarray:
        """Return a field of every :class:`EpisodeResult`, float64 (N,); NaN where it is None."""
        return np.array(self.column(name), dtype=np.float64)

    @property
    def successes(self) -> np.ndarray:
        """Success at any step, bool (N,)."""
        return np.array(self.column("success_once"), dtype=bool)

    @property
    def success(self) -> Rate:
        """Rate of episodes with success at any step, the benchmark's definition."""
        return success_rate(self.episodes)

    @property
    def success_at_end(self) -> Rate:
        """Rate of episodes with success at the last step of the horizon."""
        return Rate(sum(self.column("success_at_end")), len(self.episodes))

    def mean_distance(self, when: str) -> float:
        """Return the mean of the ``initial``, ``min`` or ``final`` distance over the episodes."""
        return float(np.mean(self.column(f"{when}_distance")))

    @property
    def closed_distance_fraction(self) -> float:
        """Fraction of the mean initial distance that is closed at the end of the episodes."""
        return 1 - self.mean_distance("final") / self.mean_distance("initial")

    @property
    def largest_z(self) -> float | None:
        """Largest normalized coordinate of any state that the policy was queried with; None if unknown."""
        z_N = self._numbers("largest_z")
        return None if np.isnan(z_N).all() else float(np.nanmax(z_N))

    @property
    def num_far(self) -> int:
        """Number of episodes with a state farther than ``FAR_Z`` from the demonstrated ones."""
        return int((self._numbers("largest_z") > FAR_Z).sum())

    @property
    def far_text(self) -> str:
        """Text on the largest distance of a state from the demonstrated ones."""
        text = "n/a" if self.largest_z is None else f"{self.largest_z:.1f} standard deviations"
        if not self.num_far:
            return text
        return (
            f"{text}; in {self.num_far} of {len(self.episodes)} episodes more than {FAR_Z:.0f}: states unlike any "
            "demonstration, where the actions of the policy are unreliable"
        )

    @property
    def clip_fraction(self) -> float:
        """Mean fraction of the commanded action values outside [-1, 1]."""
        return float(np.mean(self.column("clip_fraction")))

    @property
    def crashes(self) -> list[int]:
        """Indices of the episodes in which the simulation or the agent failed."""
        return [i for i, episode in enumerate(self.episodes) if episode.crash]

    @property
    def stage_counts(self) -> dict[Stage, int]:
        """Number of episodes that reached each stage of the task or a later one, the first stage first."""
        return stage_counts(self.task, self.column("furthest_stage"))

    @property
    def failures(self) -> dict[FailureMode, int]:
        """Number of failures of each failure mode, the most frequent first."""
        modes = sorted(filter(None, self.column("failure_mode")), key=list(FAILURE_MODES).index)
        return dict(Counter(modes).most_common())

    @property
    def recognized_tasks(self) -> dict[str, int]:
        """Number of episodes in which each task was recognized, the most frequent first; empty if the task is told."""
        return dict(Counter(filter(None, self.column("recognized_task"))).most_common())

    @property
    def recognized(self) -> Rate | None:
        """Rate of episodes whose task was recognized; None if the task is told."""
        counts = self.recognized_tasks
        return Rate(counts.get(self.task, 0), sum(counts.values())) if counts else None

    @property
    def success_by_distance(self) -> list[Bin]:
        """Success by the distance to the nearest demonstration; no bins if the distances are unknown."""
        distances = self._numbers("distance_to_nearest_demo")
        is_known = ~np.isnan(distances)
        return divide(distances[is_known], self.successes[is_known])

    @property
    def interpretation(self) -> str:
        """Sentence on what the baselines imply for the success rate; empty if they imply nothing."""
        expert, demonstrated = self.baselines.get("expert"), self.baselines.get("demonstrated initial states")
        if expert and expert.value < 0.8 and self.success.value < 0.8:
            return (
                f"The scripted expert itself succeeds only {expert} times from these initial states. "
                "Fix: check the task and its initial states before the policy."
            )
        if demonstrated and demonstrated.interval[0] > self.success.interval[1]:
            if self.init_state_set.kind == "ood":
                return (
                    "The policy succeeds from demonstrated initial states and fails from these, which lie outside the "
                    "box of the initial-state distribution: it does not extrapolate. To measure generalization within "
                    "the box: --init-states test"
                )
            training = self.provenance["training"]
            run = quoted(Path(training["checkpoint"]).parents[1]) if training["config"] else "RUN"
            return (
                "The policy succeeds from demonstrated initial states and fails from others: the demonstrations do not "
                f"cover the initial states of the evaluation. Fix: act doctor {run}"
            )
        return ""

    def is_same(self, other: Evaluation) -> bool:
        """Return True if the other is a copy of this: every number of every episode is equal."""
        return self.init_state_set.hash == other.init_state_set.hash and self.episodes == other.episodes


def success_rate(episodes: Sequence[Episode | EpisodeResult]) -> Rate:
    """Return the rate of episodes with success at any step."""
    return Rate(sum(episode.success_once for episode in episodes), len(episodes))


def rates_by_task(episodes: Sequence[Episode]) -> dict[str, Rate]:
    """Return the rate of episodes with success at any step, for each task in order of appearance."""
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.init_state.task, []).append(episode)
    return {task: success_rate(of_task) for task, of_task in by_task.items()}


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Return the results, the baselines and the provenance of an evaluation as plain values."""
    init_state_set = evaluation.init_state_set
    bins: list[dict[str, Any]] = []
    for each in evaluation.success_by_distance:
        bins.append({"low": each.low, "high": each.high, "success_once": each.rate.to_dict()})
    baselines: dict[str, Any] = {}
    for name, rate in evaluation.baselines.items():
        baselines[name] = rate.to_dict()
    return {
        "task": evaluation.task,
        "success_once": evaluation.success.to_dict(),
        "success_at_end": evaluation.success_at_end.to_dict(),
        "distance_unit": get_task(evaluation.task).unit,
        "distance": {when: evaluation.mean_distance(when) for when in ("initial", "min", "final")},
        "closed_distance_fraction": evaluation.closed_distance_fraction,
        "largest_z": evaluation.largest_z,
        "num_far": evaluation.num_far,
        "clip_fraction": evaluation.clip_fraction,
        "crashes": evaluation.crashes,
        "stage_counts": evaluation.stage_counts,
        "failures": evaluation.failures,
        "recognized_tasks": evaluation.recognized_tasks,
        "success_by_distance_to_nearest_demo": bins,
        "baselines": baselines,
        "interpretation": evaluation.interpretation,
        "init_state_set": {
            "kind": init_state_set.kind,
            "seed": init_state_set.seed,
            "num": len(init_state_set.init_states),
            "num_distinct": init_state_set.num_distinct,
            "hash": init_state_set.hash,
        },
        **evaluation.provenance,
    }


def summarize_all(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the means and the main numbers of each task as plain values; the summary of a task has all of them."""
    tasks: dict[str, Any] = {}
    for evaluation in evaluations:
        task, expert = get_task(evaluation.task), evaluation.baselines.get("expert")
        tasks[task.name] = {
            "group": task.group,
            "success_once": evaluation.success.to_dict(),
            "success_at_end": evaluation.success_at_end.to_dict(),
            "final_distance": evaluation.mean_distance("final"),
            "distance_unit": task.unit,
            "expert": expert and expert.to_dict(),
            "interpretation": evaluation.interpretation,
        }
    means: dict[str, Any] = {}
    for group, members in group_by_difficulty(evaluations).items():
        means[group] = {"num_tasks": len(members), **_plain_means(mean_rates(members))}
    if evaluations[0].protocol.mean == "groups":
        means["groups"] = {"num_tasks": len(evaluations), **_plain_means(protocol_means(evaluations))}
    provenance = evaluations[0].provenance
    return {"means": means, "tasks": tasks, **select(provenance, (*SHARED_PROVENANCE, *OPTIONAL))}


def _plain_means(means: Mapping[str, MacroAverageRate | GroupAverageRate | None]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for quantity, mean in means.items():
        low, high = (mean and mean.interval) or (None, None)
        plain[quantity] = mean and {"value": mean.value, "low": low, "high": high}
    return plain


def protocol_means(evaluations: Sequence[Evaluation]) -> Mapping[str, MacroAverageRate | GroupAverageRate | None]:
    """Return the means over all tasks, see :func:`mean_rates`, that the protocol reports: of tasks, or of groups."""
    if evaluations[0].protocol.mean == "tasks":
        return mean_rates(evaluations)
    groups = group_by_difficulty(evaluations)
    del groups["all"]
    by_group = list(map(mean_rates, groups.values()))
    means: dict[str, GroupAverageRate | None] = {}
    for quantity in by_group[0]:
        known = tuple(filter(None, (of_group[quantity] for of_group in by_group)))
        means[quantity] = GroupAverageRate(known) if len(known) == len(by_group) else None
    return means


def group_by_difficulty(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group evaluations by the difficulty of their task, the easy ones first; ``all`` is last."""
    difficulties = get_args(Difficulty)
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in sorted(evaluations, key=lambda evaluation: difficulties.index(get_task(evaluation.task).group)):
        groups.setdefault(get_task(evaluation.task).group, []).append(evaluation)
    return {**groups, "all": list(evaluations)}


def mean_rates(evaluations: Sequence[Evaluation]) -> dict[str, MacroAverageRate | None]:
    """Return the mean success of tasks, at any step and at the end, and of their experts if all were measured."""
    rates: dict[str, list[Rate | None]] = {"success_once": [], "success_at_end": [], "expert": []}
    for evaluation in evaluations:
        rates["success_once"].append(evaluation.success)
        rates["success_at_end"].append(evaluation.success_at_end)
        rates["expert"].append(evaluation.baselines.get("expert"))
    means: dict[str, MacroAverageRate | None] = {}
    for name, measured in rates.items():
        known = tuple(filter(None, measured))
        means[name] = MacroAverageRate(known) if len(known) == len(evaluations) else None
    return means


def select(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return some items of a mapping, in the order of ``keys``; :data:`OPTIONAL` ones may be missing."""
    return {key: values[key] for key in keys if key in values or key not in OPTIONAL}
