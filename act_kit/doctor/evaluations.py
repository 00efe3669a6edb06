"""Checks that the evaluations on disk belong to the policy, are reproducible, and are statistically sufficient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

from act_kit.comparison.experiments import flatten
from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, Stage, critical, ruled_out, suspected, untested, warning
from act_kit.errors import ActKitError
from act_kit.eval.distance_to_demos import near_copies
from act_kit.eval.evaluate import episode_rules, training_data
from act_kit.eval.files import check_summary
from act_kit.eval.results import EpisodeResult, Evaluation, success_rate
from act_kit.files import next_free_path, quoted, read_json
from act_kit.options import override, to_dict
from act_kit.policies.agent import PolicyAgent
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent, delayed
from act_kit.sim.initial_states import InitialStateDistribution, stack
from act_kit.sim.tasks import get_task
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

_BASELINES: dict[str, Callable[[], Agent]] = {
    "expert": ExpertAgent,
    "zero actions": ZeroActionAgent,
    "random": RandomAgent,
}

EvaluationCheck = Callable[[RunCase, Evaluation], Result | None]
"""Check of one evaluation: a fault, or None. No fix means to repeat the evaluation."""


def _first_fault(case: RunCase, check: EvaluationCheck, evidence: str) -> Result | None:
    """Return the first critical fault of the run's evaluations, or else the first warning, or None.

    ``evidence`` is the file of the evaluation with the evidence of faults that name none.
    """
    found: Result | None = None
    for evaluation in _evaluations(case):
        result = check(case, evaluation)
        if result and (found is None or result.severity == "critical"):
            file = str(evaluation.folder / (result.evidence or evidence))
            found = replace(result, evidence=file, fix=result.fix or _again(case, evaluation))
        if found and found.severity == "critical":
            break
    return found


def _of_each(
    name: str, stage: Stage, how_to_verify: str, evidence: str, otherwise: str
) -> Callable[[EvaluationCheck], Callable[[RunCase], Result]]:
    """Register the check of one evaluation as a check of all; its result is ``otherwise`` if there is no fault."""

    def register(check: EvaluationCheck) -> Callable[[RunCase], Result]:
        @CHECKS.add(name, stage, how_to_verify)
        def check_all(case: RunCase) -> Result:
            return _first_fault(case, check, evidence) or ruled_out(otherwise)

        return check_all

    return register


@_of_each(
    "horizon too short",
    "environment",
    "count the steps of each episode",
    "episodes.csv",
    "Every episode ran as long as its protocol says.",
)
def horizon(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that every episode has the horizon of the protocol, unless it ended with its success."""
    protocol, steps = evaluation.protocol, set()
    for episode in evaluation.episodes:
        may_be_short = episode.crash or (protocol.ends_at_success and episode.success_once)
        if not may_be_short or episode.num_steps > protocol.horizon:
            steps.add(episode.num_steps)
    if steps <= {protocol.horizon}:
        return None
    message = f"episodes of {evaluation.folder} ended after {min(steps)} steps"
    return critical(f"{message}; the horizon of the protocol {protocol.name} is {protocol.horizon}.")


@_of_each(
    "evaluation of another task or policy",
    "environment",
    "compare task, step and fingerprint",
    "summary.json",
    "All evaluations belong to this run's policy.",
)
def of_this_policy(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that an evaluation belongs to the best checkpoint of the run."""
    policy, recorded, folder = case.policy, evaluation.provenance, evaluation.folder
    metadata, step = policy.metadata, recorded["policy_step"]
    if evaluation.task not in policy.tasks:
        tasks = ", ".join(policy.tasks)
        message = f"{folder} is an evaluation of {evaluation.task}, but the policy was trained on {tasks}."
        return critical(message)
    trained_on = training_data(policy, evaluation.task)["fingerprint"]
    evaluated_data = recorded["dataset"]["fingerprint"]
    if evaluated_data != trained_on:
        return critical(
            f"{folder} evaluates a policy trained on data {evaluated_data[:8]}, the run's policy was trained on "
            f"{trained_on[:8]}: it belongs to another run."
        )
    config = flatten(json.loads(json.dumps(to_dict(case.config))))  # tuples become lists, as in the file
    for key, value in flatten(recorded["training"]["config"] or {}).items():
        may_differ = key == "trainer.steps" and step != metadata.step  # training may have continued since
        if key in config and value != config[key] and not may_differ:
            message = f"{folder} evaluates a run with {key}={value}, not {config[key]}"
            return critical(f"{message}: another run, or config.yaml was edited.")
    if _is_current(case, evaluation):
        return None
    if step != metadata.step:
        message = f"{folder} evaluates step {step}, but the run's policy has step {metadata.step}."
        return warning(message)
    return critical(
        f"{folder} evaluates other weights than the run's policy, although of the same step ({step}): it is older than "
        "the checkpoint, or belongs to another run."
    )


@_of_each(
    "mislabeled initial states",
    "rollouts",
    "sample them again, and compare",
    "init_states.json",
    "The initial states of each evaluation are the samples of its kind, seed and number.",
)
def as_declared(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that the initial states are the samples that their kind, seed and number determine."""
    init_state_set = evaluation.init_state_set
    declared = read_json(evaluation.folder / "init_states.json")["kind"]
    if init_state_set.kind != declared:
        return critical(
            f"the initial states in {evaluation.folder} have the kind '{declared}', but are not the "
            f"{len(init_state_set.init_states)} samples of seed {init_state_set.seed}: they were selected by hand.",
            fix=_on_test_states(case, evaluation),
        )
    if declared != "file":
        return None
    return warning(
        f"the initial states of {evaluation.folder} come from a file, not from sampling: its success rate does not "
        "estimate that on the benchmark's distribution.",
        fix=_on_test_states(case, evaluation),
    )


@CHECKS.add("evaluation damaged", "rollouts", "compare summary.json with episodes.csv and init_states.json")
def whole(case: RunCase) -> Result:
    """Check that the files of each evaluation agree with each other."""

    def agrees(case: RunCase, evaluation: Evaluation) -> Result | None:
        try:
            check_summary(evaluation)
        except ActKitError as error:
            return critical(f"the files of an evaluation contradict each other: {error}")
        return None

    evaluations, damaged = case.read_evaluations
    if damaged:
        return critical(damaged[0], case.folder, case.evaluate_with(next_free_path(case.folder / "eval-test")))
    agreement = f"The files of each evaluation agree ({len(evaluations)} evaluations)."
    return _first_fault(case, agrees, "") or ruled_out(agreement)


@CHECKS.add("evaluated on training initial states", "rollouts", "compare init_states.json with the dataset")
def disjoint(case: RunCase) -> Result:
    """Check that the initial states of evaluations were not demonstrated."""

    def is_disjoint(case: RunCase, evaluation: Evaluation) -> Result | None:
        demonstrated: list[list[float]] = []
        for store in case.stores:
            if store.info.task == evaluation.task and evaluation.init_state_set.kind != "train":
                demonstrated += store.recorded_init_states
        num = near_copies(evaluation.task, evaluation.init_states, np.array(demonstrated)).sum()
        if not num:
            return None
        return critical(
            f"{num} of the {len(evaluation.episodes)} initial states in {evaluation.folder} are training initial "
            "states, or closer to one than by chance: success from them may be memorization.",
            fix=_on_test_states(case, evaluation),
        )

    fault = _first_fault(case, is_disjoint, "init_states.json")
    unknown = [str(store.path) for store in case.stores if not store.has_init_states]
    if unknown and not fault:
        return untested(f"The initial states of {', '.join(unknown)} were not recorded.")
    return fault or ruled_out("No initial state of an evaluation was demonstrated.")


@_of_each(
    "evaluated on selection initial states",
    "rollouts",
    "compare init_states.json with the samples of the selection",
    "init_states.json",
    "Selection and evaluation use different initial states.",
)
def not_selected_on(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that the initial states were not used to select the checkpoint."""
    selection, seed = case.config.selection, case.config.trainer.seed
    num_selected = selection.episodes_per_task(len(case.policy.tasks)) if selection.num_evaluations else 0
    selected = InitialStateDistribution(evaluation.task).sample(num_selected, seed=seed, stream="select")
    num_copies = near_copies(evaluation.task, evaluation.init_states, stack(selected)).sum()
    if not num_copies:
        return None
    return critical(
        f"{num_copies} of the initial states in {evaluation.folder} were used to select the checkpoint: the success "
        "rate is biased upward.",
        fix=_on_test_states(case, evaluation),
    )


@CHECKS.add("evaluation not reproducible", "rollouts", "run its episodes again")
def repeats(case: RunCase) -> Result:
    """Check that the episodes of each evaluation, run again, have the recorded results."""
    samples: list[str] = []

    def is_reproducible(case: RunCase, evaluation: Evaluation) -> Result | None:
        if not _is_current(case, evaluation):
            return None
        indices, description = sample_episodes(evaluation, with_images=case.policy.views is not None)
        samples.append(f"{evaluation.folder}: {description}")
        used = evaluation.provenance["chunking"]
        policy = case.policy.with_chunking(
            n_action_steps=used["n_action_steps"], temporal_ensemble=used["temporal_ensemble"]
        )
        init_states = [evaluation.init_state_set.init_states[i] for i in indices]
        agent, rules = delayed(PolicyAgent(policy), evaluation.delay), episode_rules(evaluation.protocol)
        outcomes = case.roll(agent, init_states, rules=rules)
        return _compare_repeated(case, evaluation, indices, list(map(EpisodeResult.of, outcomes)))

    fault = _first_fault(case, is_reproducible, "episodes.csv")
    if not samples:
        return untested("No evaluation belongs to the current policy of the run.")
    return fault or ruled_out(f"Episodes run again have the recorded results. {'; '.join(samples)}.")


def sample_episodes(evaluation: Evaluation, *, with_images: bool) -> tuple[list[int], str]:
    """Choose the episodes that are run again; return their indices and a description of the sample.

    All episodes are chosen if they are few; otherwise half with the least plausible results (a success far from the
    goal, a failure near it), and half at random. The seed of the random half is a hash of the results, so that it
    cannot be known before the results are edited.
    """
    num, most = len(evaluation.episodes), _MAX_REPEATED_WITH_IMAGES if with_images else _MAX_REPEATED
    if num <= most:
        return list(range(num)), f"all {num}"
    distances = np.array(evaluation.column("min_distance"))
    plausibility = np.where(evaluation.successes, -distances, distances)
    implausible, others = np.split(np.argsort(plausibility, kind="stable"), [most // 2])
    digest = hashlib.sha256(repr(evaluation.episodes).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    sampled = rng.choice(others, most - len(implausible), replace=False)
    edited = np.arange(1, len(others) + 1)
    missed = hypergeom.pmf(0, len(others), edited, len(sampled))
    num_found = edited[missed <= 1 - _CONFIDENCE][0]
    return sorted([*implausible.tolist(), *sampled.tolist()]), (
        f"{most} of {num}, half of them with the least plausible results; if {num_found} or more of the others were "
        f"edited, one is found with a probability of {100 * _CONFIDENCE:.0f} %"
    )


def _compare_repeated(
    case: RunCase, evaluation: Evaluation, indices: Sequence[int], repeated: Sequence[EpisodeResult]
) -> Result | None:
    """Compare episodes run again with their results; a fault is confirmed if they change the success rate one way."""
    differing: list[tuple[int, EpisodeResult, EpisodeResult]] = []
    lost = won = 0
    for i, again in zip(indices, repeated, strict=True):
        recorded = evaluation.episodes[i]
        same_success = (recorded.success_at_end, recorded.success_step) == (again.success_at_end, again.success_step)
        if not same_success or not np.allclose(_distances(recorded), _distances(again), rtol=0, atol=_SAME_DISTANCE):
            differing.append((i, recorded, again))
            lost += recorded.success_once > again.success_once
            won += recorded.success_once < again.success_once
    if not differing:
        return None
    i, recorded, again = differing[0]
    words = {True: "success", False: "failure"}
    message = (
        f"{len(differing)} of {len(indices)} episodes of {evaluation.folder}, run again, end differently: {lost} "
        f"successes are failures, {won} failures are successes. Episode {i} ended {recorded.final_distance:.4f} "
        f"{get_task(evaluation.task).unit} from the goal ({words[recorded.success_once]}), run again "
        f"{again.final_distance:.4f} ({words[again.success_once]})"
    )
    is_biased = mcnemar(lost, won) < 0.05
    if evaluation.provenance["versions"] != case.policy.metadata.versions or case.policy.views:
        message = f"{message}: other versions, another renderer, or edited."
        return suspected(message, severity="critical" if is_biased else "warning")
    if is_biased:
        reason = "Rounding has no bias: the result was edited, or belongs to another policy."
        return critical(f"{message}. {reason}")
    return suspected(
        f"{message}. On another processor or GPU this may be rounding; on the same one, the result was edited, or "
        "belongs to another policy or environment.",
        severity="critical",
    )


def _distances(episode: EpisodeResult) -> tuple[float, float, float]:
    return episode.initial_distance, episode.min_distance, episode.final_distance


@_of_each(
    "baselines not reproducible",
    "rollouts",
    "run them again",
    "summary.json",
    "The baselines, run again, have the recorded success rates.",
)
def baselines_repeat(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that the baselines of an evaluation, run again, have the recorded success rates."""
    for name, agent in _BASELINES.items():
        recorded = evaluation.baselines.get(name)
        if recorded is None:
            continue
        init_states = evaluation.init_state_set.init_states[: recorded.num]
        rules = episode_rules(evaluation.protocol)
        rate = success_rate(case.roll(agent(), init_states, rules=rules, stop_at_success=True))
        if rate != recorded:
            return suspected(
                f"the baseline '{name}' of {evaluation.folder} succeeds {rate}, but summary.json has "
                f"{recorded.successes} of {recorded.num}: another processor or environment, or edited."
            )
    return None


@_of_each("crashed episodes", "rollouts", "run them again", "episodes.csv", "No episode crashed.")
def crashes(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that no simulation crashed."""
    crashed = evaluation.crashes
    if not crashed:
        return None
    numbers = ", ".join(map(str, crashed[:5]))
    message = f"{len(crashed)} episodes of {evaluation.folder} crashed, and count as failed: {numbers}."
    return warning(message)


@_of_each(
    "a zero-action policy succeeds",
    "statistics",
    "compare with the baselines",
    "summary.json",
    "Neither a zero-action policy nor random actions succeed.",
)
def baselines(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that a zero-action policy and random actions do not succeed."""
    for name, baseline in (("zero actions", "a zero-action policy succeeds"), ("random", "random actions succeed")):
        rate = evaluation.baselines.get(name)
        if rate and rate.interval[0] > 0.2:
            return warning(
                f"{baseline} {rate.successes} of {rate.num} times from the initial states of {evaluation.folder}: a "
                "success there is weak evidence."
            )
    return None


@_of_each(
    "too few episodes",
    "statistics",
    "evaluate from more initial states",
    "init_states.json",
    "Every evaluation has enough episodes, each from its own initial state.",
)
def enough(case: RunCase, evaluation: Evaluation) -> Result | None:
    """Check that an evaluation has enough episodes from distinct initial states."""
    num, num_distinct = len(evaluation.episodes), evaluation.init_state_set.num_distinct
    if num_distinct < num:
        return critical(
            f"{num} episodes of {evaluation.folder} have only {num_distinct} distinct initial states: an interval over "
            f"{num} is too narrow."
        )
    if num >= _MIN_EPISODES:
        return None
    message = f"{evaluation.folder} has {num} episodes: success {evaluation.success}."
    return warning(message, "summary.json", _again(case, evaluation, episodes=100))


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
    kind, used, own = evaluation.init_state_set.kind, evaluation.provenance["chunking"], case.policy.chunking
    num, seed = episodes or len(evaluation.episodes), evaluation.init_state_set.seed
    options = ["--episodes", str(num), "--seed", str(seed)]
    if kind == "file":
        options = ["--init-states", str(evaluation.folder / "init_states.json")]
    elif kind != "test":
        options += ["--init-states", kind]
    if used["temporal_ensemble"] != own.temporal_ensemble:
        options.append("--temporal-ensemble" if used["temporal_ensemble"] else "--no-temporal-ensemble")
    if used["n_action_steps"] != own.n_action_steps:
        options += ["--n-action-steps", str(used["n_action_steps"])]
    if evaluation.protocol.name != "metaworld":
        options += ["--protocol", evaluation.protocol.name]
    for name in ("horizon", "settle_steps", "ends_at_success"):
        if name in evaluation.provenance.get("protocol", {}).get("changed", {}):
            options.append(override(f"protocol.{name}", getattr(evaluation.protocol, name)))
    if evaluation.delay:
        options += ["--delay", str(evaluation.delay)]
    return case.evaluate_with(_new_folder(evaluation), *options)


def _on_test_states(case: RunCase, evaluation: Evaluation) -> str:
    """Return the command that evaluates from as many test initial states, in a new folder."""
    return case.evaluate_with(_new_folder(evaluation), "--episodes", str(max(_MIN_EPISODES, len(evaluation.episodes))))


def _new_folder(evaluation: Evaluation) -> Path:
    """Return a free path next to an evaluation, or next to the multi-task evaluation that contains it."""
    parent = evaluation.folder.parent
    return next_free_path(parent if (parent / "summary.json").exists() else evaluation.folder)
