"""Checks that the evaluations on disk belong to the policy, are reproducible, and are statistically sufficient."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from act_kit.comparison.experiments import flatten
from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.errors import ActKitError
from act_kit.eval.distance_to_demos import near_copies
from act_kit.eval.files import check_summary
from act_kit.eval.results import EpisodeResult, Evaluation, success_rate
from act_kit.files import next_free_path, quoted, read_json
from act_kit.options import to_dict
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.rollout import Outcome
from act_kit.sim.initial_states import InitialStateDistribution, stack
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.statistics import mcnemar
from act_kit.training.run import recorded_evaluations

CHECKS = Checks[RunCase]()

_MAX_REPEATED = 200
"""Maximum number of episodes of an evaluation that are run again; of more, the least plausible and random ones."""

_MAX_REPEATED_WITH_IMAGES = 24
"""The same for a policy with image inputs, whose rendering takes seconds per episode."""

_CONFIDENCE = 0.95
"""Probability with which the stated number of edited episodes is found."""

_SAME_DISTANCE = 1e-4
"""Tolerance of distances, in meters or radians: more than the rounding of episodes.csv."""

_MIN_EPISODES = 30
"""Number of episodes below which a success rate is uninformative: 0 of 30 may still be 11 %."""


@CHECKS.add("horizon too short", stage="environment", how_to_verify="count the steps of each episode")
def horizon(case: RunCase) -> Result:
    """Check that every episode has the horizon of the benchmark."""
    for evaluation in _evaluations(case):
        steps = [episode.num_steps for episode in evaluation.episodes if not episode.crash]
        if evaluation.provenance["horizon"] != HORIZON or any(num != HORIZON for num in steps):
            return critical(
                f"episodes of {evaluation.folder} ended after {min(steps, default=0)} steps; the benchmark's horizon "
                f"is {HORIZON}.",
                evaluation.folder / "episodes.csv",
                _again(case, evaluation),
            )
    return ruled_out(f"Every episode ran for {HORIZON} steps.")


@CHECKS.add(
    "evaluation of another task or policy", stage="environment", how_to_verify="compare task, step and fingerprint"
)
def of_this_policy(case: RunCase) -> Result:
    """Check that each evaluation belongs to the best checkpoint of the run."""
    policy = case.policy
    for evaluation in _evaluations(case):
        provenance = evaluation.provenance
        if evaluation.task not in policy.tasks:
            return critical(
                f"{evaluation.folder} is an evaluation of {evaluation.task}, but the policy was trained on "
                f"{', '.join(policy.tasks)}.",
                evaluation.folder / "summary.json",
                _again(case, evaluation),
            )
        trained_on = [data.fingerprint for data in policy.metadata.datasets if data.task == evaluation.task]
        if provenance["dataset"]["fingerprint"] != "; ".join(trained_on):
            evaluated_data = provenance["dataset"]["fingerprint"][:8]
            return critical(
                f"{evaluation.folder} evaluates a policy trained on data {evaluated_data}, the run's policy was "
                f"trained on {'; '.join(trained_on)[:8]}: it belongs to another run.",
                evaluation.folder / "summary.json",
                _again(case, evaluation),
            )
        evaluated = flatten(provenance["training"]["config"] or {})
        if provenance["policy_step"] != policy.metadata.step:
            evaluated.pop("trainer.steps", None)  # training may have continued since
        differing = _differing(evaluated, to_dict(case.config))
        if differing:
            return critical(
                f"{evaluation.folder} evaluates a run with {differing}: another run, or config.yaml was edited.",
                evaluation.folder / "summary.json",
                _again(case, evaluation),
            )
    for evaluation in _evaluations(case):
        if evaluation.provenance["policy_step"] == policy.metadata.step and not _is_current(case, evaluation):
            return critical(
                f"{evaluation.folder} evaluates other weights than the run's policy, although of the same step "
                f"({policy.metadata.step}): it is older than the checkpoint, or belongs to another run.",
                evaluation.folder / "summary.json",
                _again(case, evaluation),
            )
    old = [evaluation for evaluation in _evaluations(case) if not _is_current(case, evaluation)]
    if old:
        return warning(
            f"{old[0].folder} evaluates step {old[0].provenance['policy_step']}, but the run's policy has step "
            f"{policy.metadata.step}.",
            old[0].folder / "summary.json",
            _again(case, old[0]),
        )
    return ruled_out("All evaluations belong to this run's policy.")


@CHECKS.add("mislabeled initial states", stage="rollouts", how_to_verify="sample them again, and compare")
def as_declared(case: RunCase) -> Result:
    """Check that the initial states of each evaluation are the samples that its kind, seed and number determine."""
    from_file = []
    for evaluation in _evaluations(case):
        init_state_set = evaluation.init_state_set
        kind = read_json(evaluation.folder / "init_states.json")["kind"]
        if init_state_set.kind != kind:
            return critical(
                f"the initial states in {evaluation.folder} have the kind '{kind}', but are not the "
                f"{len(init_state_set.init_states)} samples of seed {init_state_set.seed}: they were selected by hand.",
                evaluation.folder / "init_states.json",
                _on_test_states(case, evaluation),
            )
        if kind == "file":
            from_file.append(evaluation)
    if from_file:
        return warning(
            f"the initial states of {from_file[0].folder} come from a file, not from sampling: its success rate does "
            "not estimate that on the benchmark's distribution.",
            from_file[0].folder / "init_states.json",
            _on_test_states(case, from_file[0]),
        )
    return ruled_out("The initial states of each evaluation are the samples of its kind, seed and number.")


@CHECKS.add(
    "evaluation damaged", stage="rollouts", how_to_verify="compare summary.json with episodes.csv and init_states.json"
)
def whole(case: RunCase) -> Result:
    """Check that the files of each evaluation agree with each other."""
    evaluations, damaged = case.read_evaluations
    if damaged:
        return critical(damaged[0], case.folder, case.evaluate_with(next_free_path(case.folder / "eval-test")))
    for evaluation in _evaluations(case):
        try:
            check_summary(evaluation)
        except ActKitError as error:
            message = f"the files of an evaluation contradict each other: {error}"
            return critical(message, evaluation.folder, _again(case, evaluation))
    return ruled_out(f"The files of each evaluation agree ({len(evaluations)} evaluations).")


@CHECKS.add(
    "evaluated on training initial states", stage="rollouts", how_to_verify="compare init_states.json with the dataset"
)
def disjoint(case: RunCase) -> Result:
    """Check that the initial states of evaluations were not demonstrated."""
    for evaluation in _evaluations(case):
        if evaluation.init_state_set.kind == "train":
            continue
        demonstrated = []
        for store in case.stores:
            if store.info.task == evaluation.task:
                demonstrated += store.recorded_init_states
        num = int(near_copies(evaluation.task, evaluation.init_states, np.array(demonstrated)).sum())
        if num:
            return critical(
                f"{num} of the {len(evaluation.episodes)} initial states in {evaluation.folder} are training "
                "initial states, or closer to one than by chance: success from them may be memorization.",
                evaluation.folder / "init_states.json",
                _on_test_states(case, evaluation),
            )
    unknown = [str(store.path) for store in case.stores if not store.has_init_states]
    if unknown:
        return untested(f"The initial states of {', '.join(unknown)} were not recorded.")
    return ruled_out("No initial state of an evaluation was demonstrated.")


@CHECKS.add(
    "evaluated on selection initial states",
    stage="rollouts",
    how_to_verify="compare init_states.json with the samples of the selection",
)
def not_selected_on(case: RunCase) -> Result:
    """Check that the initial states of evaluations were not used to select the checkpoint."""
    if not case.config.selection.num_evaluations:
        return ruled_out("No checkpoint was selected by rollouts.")
    for evaluation in _evaluations(case):
        distribution = InitialStateDistribution(evaluation.task)
        selection = stack(
            distribution.sample(case.config.selection.episodes, seed=case.config.trainer.seed, stream="select")
        )
        num = int(near_copies(evaluation.task, evaluation.init_states, selection).sum())
        if num:
            return critical(
                f"{num} of the initial states in {evaluation.folder} were used to select the checkpoint: the success "
                "rate is biased upward.",
                evaluation.folder / "init_states.json",
                _on_test_states(case, evaluation),
            )
    return ruled_out("Selection and evaluation use different initial states.")


@CHECKS.add("evaluation not reproducible", stage="rollouts", how_to_verify="run its episodes again")
def repeats(case: RunCase) -> Result:
    """Check that the episodes of each evaluation, run again, have the recorded results."""
    current = [evaluation for evaluation in _evaluations(case) if _is_current(case, evaluation)]
    if not current:
        return untested("No evaluation belongs to the current policy of the run.")
    samples = []
    for evaluation in current:
        sample = _Sample.of(case, evaluation)
        used = evaluation.provenance["chunking"]
        policy = case.policy.with_chunking(
            n_action_steps=int(used["n_action_steps"]), temporal_ensemble=bool(used["temporal_ensemble"])
        )
        init_states = [evaluation.init_state_set.init_states[i] for i in sample.episodes]
        outcomes = case.act_from(policy, init_states, to_the_end=True)
        differing = [
            (i, outcome)
            for i, outcome in zip(sample.episodes, outcomes, strict=True)
            if _differs(evaluation.episodes[i], outcome)
        ]
        if differing:
            return _not_repeated(case, evaluation, sample, differing)
        samples.append(f"{evaluation.folder}: {sample}")
    return ruled_out(f"Episodes run again have the recorded results. {'; '.join(samples)}.")


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The episodes of an evaluation that are run again.

    Attributes:
        episodes: Indices of the episodes.
        num_random: Number of randomly sampled episodes; the others have the least plausible results.
        num: Number of all episodes of the evaluation.
    """

    episodes: list[int]
    num_random: int
    num: int

    @classmethod
    def of(cls, case: RunCase, evaluation: Evaluation) -> _Sample:
        """Choose all episodes if they are few; otherwise half with the least plausible results, half at random.

        The seed of the random half is a hash of the rows, so that it cannot be known before the rows are edited.
        """
        rows = evaluation.episodes
        max_repeated = _MAX_REPEATED_WITH_IMAGES if case.policy.views else _MAX_REPEATED
        if len(rows) <= max_repeated:
            return cls(episodes=list(range(len(rows))), num_random=len(rows), num=len(rows))
        by_implausibility = sorted(range(len(rows)), key=lambda i: -_implausibility(rows[i]))
        implausible = by_implausibility[: max_repeated // 2]
        digest = hashlib.sha256(repr(rows).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        sampled = rng.choice(by_implausibility[max_repeated // 2 :], max_repeated - len(implausible), replace=False)
        return cls(episodes=sorted([*implausible, *sampled.tolist()]), num_random=len(sampled), num=len(rows))

    def __str__(self) -> str:
        if self.num_random == self.num:
            return f"all {self.num}"
        rest = self.num - len(self.episodes) + self.num_random
        edited = np.arange(1, rest + 1)
        missed = hypergeom.pmf(0, rest, edited, self.num_random)
        num_found = int(edited[missed <= 1 - _CONFIDENCE][0])
        return (
            f"{len(self.episodes)} of {self.num}, half of them with the least plausible results; if {num_found} or "
            f"more of the others were edited, one is found with a probability of {100 * _CONFIDENCE:.0f} %"
        )


def _implausibility(episode: EpisodeResult) -> float:
    """Return how implausible a recorded result is: a success far from the goal, or a failure near it."""
    return episode.min_distance if episode.success_once else -episode.min_distance


def _differs(recorded: EpisodeResult, outcome: Outcome) -> bool:
    """Return True if an episode run again has another result than its row."""
    repeated = EpisodeResult.of(outcome)
    names = ("success_once", "success_at_end", "success_step")
    distances = ("initial_distance", "min_distance", "final_distance")
    return any(getattr(recorded, name) != getattr(repeated, name) for name in names) or any(
        not math.isclose(getattr(recorded, name), getattr(repeated, name), abs_tol=_SAME_DISTANCE) for name in distances
    )


def _not_repeated(
    case: RunCase, evaluation: Evaluation, sample: _Sample, differing: Sequence[tuple[int, Outcome]]
) -> Result:
    """Report the episodes that do not repeat; the fault is confirmed if they change the success rate one way."""
    i, outcome = differing[0]
    row, unit = evaluation.episodes[i], get_task(evaluation.task).unit
    flips = [(evaluation.episodes[i].success_once, outcome.success_once) for i, outcome in differing]
    lost, won = flips.count((True, False)), flips.count((False, True))
    message = (
        f"{len(differing)} of {len(sample.episodes)} episodes of {evaluation.folder}, run again, end differently: "
        f"{lost} successes are failures, {won} failures are successes. Episode {i} ended "
        f"{row.final_distance:.4f} {unit} from the goal ({_result(row.success_once)}), run again "
        f"{outcome.distance[-1]:.4f} ({_result(outcome.success_once)})"
    )
    evidence, fix = evaluation.folder / "episodes.csv", _again(case, evaluation)
    is_biased = mcnemar(lost, won) < 0.05
    if evaluation.provenance["versions"] != case.policy.metadata.versions or case.policy.views:
        message = f"{message}: other versions, another renderer, or edited."
        return suspected(message, evidence, fix, severity="critical" if is_biased else "warning")
    if is_biased:
        return critical(
            f"{message}. Rounding has no bias: the result was edited, or belongs to another policy.", evidence, fix
        )
    return suspected(
        f"{message}. On another processor or GPU this may be rounding; on the same one, the result was edited, or "
        "belongs to another policy or environment.",
        evidence,
        fix,
        severity="critical",
    )


def _result(succeeded: object) -> str:
    return "success" if succeeded else "failure"


@CHECKS.add("baselines not reproducible", stage="rollouts", how_to_verify="run them again")
def baselines_repeat(case: RunCase) -> Result:
    """Check that the baselines, run again, have the recorded success rates."""
    for evaluation in _evaluations(case):
        init_states = evaluation.init_state_set.init_states
        for name, recorded in evaluation.baselines.items():
            if name not in _BASELINES:  # baselines of the policy itself; its episodes have their own check
                continue
            rate = success_rate(case.roll(_BASELINES[name](), init_states[: recorded.num], stop_at_success=True))
            if rate != recorded:
                return suspected(
                    f"the baseline '{name}' of {evaluation.folder} succeeds {rate}, but summary.json has "
                    f"{recorded.successes} of {recorded.num}: another processor or environment, or edited.",
                    evaluation.folder / "summary.json",
                    _again(case, evaluation),
                )
    return ruled_out("The baselines, run again, have the recorded success rates.")


_BASELINES: dict[str, Callable[[], Agent]] = {
    "expert": ExpertAgent,
    "zero actions": ZeroActionAgent,
    "random": RandomAgent,
}


@CHECKS.add("crashed episodes", stage="rollouts", how_to_verify="run them again")
def crashes(case: RunCase) -> Result:
    """Check that no simulation crashed."""
    for evaluation in _evaluations(case):
        crashed = list(map(str, evaluation.crashes))
        if crashed:
            return warning(
                f"{len(crashed)} episodes of {evaluation.folder} crashed, and count as failed: "
                f"{', '.join(crashed[:5])}.",
                evaluation.folder / "episodes.csv",
                _again(case, evaluation),
            )
    return ruled_out("No episode crashed.")


@CHECKS.add("a zero-action policy succeeds", stage="statistics", how_to_verify="compare with the baselines")
def baselines(case: RunCase) -> Result:
    """Check that a zero-action policy and random actions do not succeed."""
    for evaluation in _evaluations(case):
        for name, baseline in (("zero actions", "a zero-action policy succeeds"), ("random", "random actions succeed")):
            rate = evaluation.baselines.get(name)
            if rate and rate.interval[0] > 0.2:
                return warning(
                    f"{baseline} {rate.successes} of {rate.num} times from the initial states of "
                    f"{evaluation.folder}: a success there is weak evidence.",
                    evaluation.folder / "summary.json",
                    _again(case, evaluation),
                )
    return ruled_out("Neither a zero-action policy nor random actions succeed.")


@CHECKS.add("too few episodes", stage="statistics", how_to_verify="evaluate from more initial states")
def enough(case: RunCase) -> Result:
    """Check that each evaluation has enough episodes from distinct initial states."""
    for evaluation in _evaluations(case):
        num, num_distinct = len(evaluation.episodes), evaluation.init_state_set.num_distinct
        if num_distinct < num:
            return critical(
                f"{num} episodes of {evaluation.folder} have only {num_distinct} distinct initial states: an interval "
                f"over {num} is too narrow.",
                evaluation.folder / "init_states.json",
                _again(case, evaluation),
            )
        if num < _MIN_EPISODES:
            return warning(
                f"{evaluation.folder} has {num} episodes: success {evaluation.success}.",
                evaluation.folder / "summary.json",
                _again(case, evaluation, episodes=100),
            )
    return ruled_out("Every evaluation has enough episodes, each from its own initial state.")


def _differing(evaluated: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the first option that differs, with both values, or "" if none does."""
    expected = flatten(json.loads(json.dumps(config)))  # tuples become lists, as in the file
    for key, value in evaluated.items():
        if value != expected.get(key):
            return f"{key}={value}, not {expected.get(key)}"
    return ""


def _evaluations(case: RunCase) -> list[Evaluation]:
    if case.evaluations:
        return case.evaluations
    missing = [str(folder) for folder in recorded_evaluations(case.folder) if not folder.exists()]
    note = f" (those in {', '.join(missing)} no longer exist)" if missing else ""
    raise ActKitError(f"This run was not evaluated{note}. Fix: act eval {quoted(case.folder)}")


def _is_current(case: RunCase, evaluation: Evaluation) -> bool:
    """Return True if an evaluation belongs to the weights of the current best checkpoint."""
    recorded, policy = evaluation.provenance, case.policy
    return (recorded["policy_step"], recorded["weights"]) == (policy.metadata.step, policy.weights_hash)


def _again(case: RunCase, evaluation: Evaluation, *, episodes: int | None = None) -> str:
    """Return the command that repeats an evaluation in a new folder."""
    init_state_set, used = evaluation.init_state_set, evaluation.provenance["chunking"]
    kind = init_state_set.kind
    options = ["--episodes", str(episodes or len(evaluation.episodes)), "--seed", str(init_state_set.seed)]
    if kind == "file":
        options = ["--init-states", str(evaluation.folder / "init_states.json")]
    elif kind != "test":
        options += ["--init-states", str(kind)]
    if used["temporal_ensemble"] != case.policy.chunking.temporal_ensemble:
        options.append("--temporal-ensemble" if used["temporal_ensemble"] else "--no-temporal-ensemble")
    if used["n_action_steps"] != case.policy.chunking.n_action_steps:
        options += ["--n-action-steps", str(used["n_action_steps"])]
    return case.evaluate_with(_new_folder(evaluation), *options)


def _on_test_states(case: RunCase, evaluation: Evaluation) -> str:
    """Return the command that evaluates from as many test initial states, in a new folder."""
    return case.evaluate_with(_new_folder(evaluation), "--episodes", str(max(_MIN_EPISODES, len(evaluation.episodes))))


def _new_folder(evaluation: Evaluation) -> Path:
    """Return a free path next to an evaluation, or next to the multi-task evaluation that contains it."""
    parent = evaluation.folder.parent
    return next_free_path(parent if (parent / "summary.json").exists() else evaluation.folder)
