"""Do the evaluations on disk say what the policy does, and is that enough to believe?"""

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

from act_kit.compare.experiments import flatten
from act_kit.doctor.case import EvaluationFiles, RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.errors import ActKitError
from act_kit.eval.distance_to_demos import near_copies
from act_kit.eval.evaluate import distance_at, success_rate
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.recount import check_summary, read_rows
from act_kit.files import free_beside, quoted
from act_kit.overrides import to_dict
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.rollout import Outcome
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, distinct, stack
from act_kit.sim.tasks import HORIZON
from act_kit.statistics import Rate, mcnemar
from act_kit.training.run import noted_evaluations

CHECKS = Checks[RunCase]()

_MOST_AGAIN = 200
"""Episodes of an evaluation that are run again: up to here all; beyond, the most telling ones and some at random."""

_MOST_DRAWN = 24
"""Likewise of a policy that looks at images, which take seconds an episode to draw."""

_SURE = 0.95
"""Probability with which an edit of so many episodes is said to be found."""

_SAME_DISTANCE = 1e-4
"""Metres, or radians: more than the rounding of episodes.csv."""

_ENOUGH = 30
"""Episodes below which a success rate says next to nothing: 0 of 30 may still be 11 %."""


@CHECKS.add("horizon too short", stage="environment", how_to_verify="count the steps of each episode")
def horizon(case: RunCase) -> Result:
    """Did episodes run as long as the benchmark's?"""
    for evaluation in _evaluations(case):
        steps = [int(row["num_steps"]) for row in evaluation.rows if not row["crash"]]
        if evaluation.summary["horizon"] != HORIZON or any(num != HORIZON for num in steps):
            return critical(
                f"episodes of {evaluation.folder} ended after {min(steps, default=0)} steps; the benchmark's horizon "
                f"is {HORIZON}.", evaluation.folder / "episodes.csv", _again(case, evaluation),
            )  # fmt: skip
    return ruled_out(f"Every episode ran for {HORIZON} steps.")


@CHECKS.add(
    "evaluation of another task or policy", stage="environment", how_to_verify="compare task, step and fingerprint"
)
def of_this_policy(case: RunCase) -> Result:
    """Is the evaluation that of the checkpoint that the run calls best?"""
    policy = case.policy
    for evaluation in _evaluations(case):
        summary = evaluation.summary
        if evaluation.task not in policy.tasks:
            return critical(
                f"{evaluation.folder} is of {evaluation.task}, the policy of {', '.join(policy.tasks)}.",
                evaluation.folder / "summary.json", _again(case, evaluation),
            )  # fmt: skip
        shown = [data.fingerprint for data in policy.contract.demonstrations if data.task == evaluation.task]
        if summary["dataset"]["fingerprint"] != "; ".join(shown):
            return critical(
                f"{evaluation.folder} is of a policy trained on data {summary['dataset']['fingerprint'][:8]}, the "
                f"run's on {'; '.join(shown)[:8]}: it is another run's.", evaluation.folder / "summary.json",
                _again(case, evaluation),
            )  # fmt: skip
        theirs = flatten((summary.get("training") or {}).get("config") or {})
        if summary["policy_step"] != policy.contract.step:
            theirs.pop("trainer.steps", None)  # training may have gone on since
        differing = _differing(theirs, to_dict(case.config))
        if differing:
            return critical(
                f"{evaluation.folder} is of a run with {differing}: another run's, or config.yaml was edited.",
                evaluation.folder / "summary.json", _again(case, evaluation),
            )  # fmt: skip
    for evaluation in _evaluations(case):
        if evaluation.summary["policy_step"] == policy.contract.step and not _is_current(case, evaluation):
            return critical(
                f"{evaluation.folder} is of other weights than the run's policy has, though of the same step "
                f"({policy.contract.step}): it is older than the checkpoint, or of another run's.",
                evaluation.folder / "summary.json", _again(case, evaluation),
            )  # fmt: skip
    old = [evaluation for evaluation in _evaluations(case) if not _is_current(case, evaluation)]
    if old:
        return warning(
            f"{old[0].folder} is of step {old[0].summary['policy_step']}, the run's policy of step "
            f"{policy.contract.step}.", old[0].folder / "summary.json", _again(case, old[0]),
        )  # fmt: skip
    return ruled_out("The evaluations are of this run's policy.")


@CHECKS.add(
    "initial states are not what they are called", stage="rollouts", how_to_verify="draw them again, and compare"
)
def as_called(case: RunCase) -> Result:
    """Are the initial states of an evaluation the draws that its kind, seed and number decide?"""
    chosen = []
    for evaluation in _evaluations(case):
        init_state_set = InitialStateSet.load(evaluation.folder / "init_states.json")
        kind = evaluation.init_states_file["kind"]
        if init_state_set.kind != kind:
            return critical(
                f"the initial states in {evaluation.folder} are called '{kind}', but they are not the "
                f"{len(init_state_set.init_states)} that seed {init_state_set.seed} draws: somebody chose them.",
                evaluation.folder / "init_states.json", _fresh(case, evaluation),
            )  # fmt: skip
        if kind == "file":
            chosen.append(evaluation)
    if chosen:
        return warning(
            f"the initial states of {chosen[0].folder} were taken from a file, not drawn: its success rate is not that "
            "from the benchmark's distribution.", chosen[0].folder / "init_states.json", _fresh(case, chosen[0]),
        )  # fmt: skip
    return ruled_out("The initial states of each evaluation are those that its kind, seed and number draw.")


@CHECKS.add(
    "evaluation damaged", stage="rollouts", how_to_verify="compare summary.json with episodes.csv and init_states.json"
)
def whole(case: RunCase) -> Result:
    """Do the files of each evaluation agree with each other?"""
    evaluations, damaged = case.read_evaluations
    if damaged:
        return critical(damaged[0], case.folder, case.evaluate_with(free_beside(case.folder / "eval-test")))
    for evaluation in _evaluations(case):
        wrong = _disagreement(evaluation)
        if wrong:
            return critical(
                f"the files of an evaluation contradict each other: {wrong}",
                evaluation.folder,
                _again(case, evaluation),
            )
    return ruled_out(f"The files of each evaluation agree ({len(evaluations)} looked at).")


def _disagreement(evaluation: EvaluationFiles) -> str:
    """Say where the files of an evaluation disagree; "" where they do not."""
    try:
        check_summary(evaluation.folder, evaluation.summary, read_rows(evaluation.folder))
    except ActKitError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        return f"{evaluation.folder / 'summary.json'} is not what act eval writes: {error!r}."
    return ""


@CHECKS.add("evaluated on training starts", stage="rollouts", how_to_verify="compare init_states.json with the dataset")
def disjoint(case: RunCase) -> Result:
    """Were the starts of an evaluation demonstrated?"""
    for evaluation in _evaluations(case):
        if evaluation.init_states_file["kind"] == "train":
            continue
        seen = [
            init_state
            for store in case.stores
            if store.info.task == evaluation.task
            for init_state in store.recorded_init_states
        ]
        num = int(near_copies(evaluation.task, evaluation.init_states, np.array(seen)).sum())
        if num:
            return critical(
                f"{num} of the {len(evaluation.init_states)} evaluation starts in {evaluation.folder} are training "
                "starts, or nearer to such than chance brings them: success from them may be memory.",
                evaluation.folder / "init_states.json", _fresh(case, evaluation),
            )  # fmt: skip
    unknown = [str(store.path) for store in case.stores if not store.has_init_states]
    if unknown:
        return untested(f"Nobody recorded the starts of {', '.join(unknown)}.")
    return ruled_out("No evaluation start was demonstrated.")


@CHECKS.add(
    "evaluated on selection starts",
    stage="rollouts",
    how_to_verify="compare init_states.json with the selection's draw",
)
def not_selected_on(case: RunCase) -> Result:
    """Did the starts that report on the checkpoint choose it?"""
    if not case.config.selection.num_evaluations:
        return ruled_out("Nothing was selected.")
    for evaluation in _evaluations(case):
        distribution = InitialStateDistribution(evaluation.task)
        chose = stack(
            distribution.sample(case.config.selection.episodes, seed=case.config.trainer.seed, stream="select")
        )
        num = int(near_copies(evaluation.task, evaluation.init_states, chose).sum())
        if num:
            return critical(
                f"{num} of the evaluation starts in {evaluation.folder} are those that chose the checkpoint: the "
                "number flatters it.", evaluation.folder / "init_states.json", _fresh(case, evaluation),
            )  # fmt: skip
    return ruled_out("The starts that chose the checkpoint are not those that report on it.")


@CHECKS.add("evaluation does not repeat", stage="rollouts", how_to_verify="run its episodes again")
def repeats(case: RunCase) -> Result:
    """Does the policy do here what the evaluation says that it did?"""
    of_this = [evaluation for evaluation in _evaluations(case) if _is_current(case, evaluation)]
    if not of_this:
        return untested("No evaluation is of the policy that the run has now.")
    samples = []
    for evaluation in of_this:
        sample = _Sample.of(case, evaluation)
        used = evaluation.summary["chunking"]
        policy = case.policy.with_chunking(
            n_action_steps=int(used["n_action_steps"]), temporal_ensemble=bool(used["temporal_ensemble"])
        )
        init_states = [InitialState.of(evaluation.task, evaluation.init_states[i]) for i in sample.episodes]
        outcomes = case.act_from(policy, init_states, to_the_end=True)
        differing = [
            (i, outcome)
            for i, outcome in zip(sample.episodes, outcomes, strict=True)
            if _ends_otherwise(evaluation.rows[i], outcome)
        ]
        if differing:
            return _not_repeated(case, evaluation, sample, differing)
        samples.append(f"{evaluation.folder}: {sample}")
    return ruled_out(f"Episodes run again end where they ended. {'; '.join(samples)}.")


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The episodes of an evaluation that are run again.

    Attributes:
        episodes: Their numbers.
        num_random: How many of them were drawn at random; the others are those whose result is the least plausible.
        num: Of all.
    """

    episodes: list[int]
    num_random: int
    num: int

    @classmethod
    def of(cls, case: RunCase, evaluation: EvaluationFiles) -> _Sample:
        """Choose all episodes where that is cheap; otherwise half by what they claim, half at random.

        The random ones follow from the rows, so that nobody can know them before the rows are edited.
        """
        rows = evaluation.rows
        most = _MOST_DRAWN if case.policy.views else _MOST_AGAIN
        if len(rows) <= most:
            return cls(episodes=list(range(len(rows))), num_random=len(rows), num=len(rows))
        by_doubt = sorted(range(len(rows)), key=lambda i: -_doubt(rows[i]))
        told = by_doubt[: most // 2]
        digest = hashlib.sha256(json.dumps(rows).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        drawn = rng.choice(by_doubt[most // 2 :], most - len(told), replace=False)
        return cls(episodes=sorted([*told, *drawn.tolist()]), num_random=len(drawn), num=len(rows))

    def __str__(self) -> str:
        if self.num_random == self.num:
            return f"all {self.num}"
        rest = self.num - len(self.episodes) + self.num_random
        edited = np.arange(1, rest + 1)
        missed = hypergeom.pmf(0, rest, edited, self.num_random)
        num_found = int(edited[missed <= 1 - _SURE][0])
        return (
            f"{len(self.episodes)} of {self.num}, half of them those whose results are the least plausible; of "
            f"{num_found} or more edited ones among the others, one is found with a probability of {100 * _SURE:.0f} %"
        )


def _doubt(row: Mapping[str, str]) -> float:
    """Return how little an episode looks like what it claims: a success far off, a failure near by."""
    closest = float(row["min_distance"])
    return closest if int(row["success_once"]) else -closest


def _ends_otherwise(row: Mapping[str, str], outcome: Outcome) -> bool:
    """Tell whether an episode run again has another result than its row."""
    step = "" if outcome.success_step is None else str(outcome.success_step)
    said = (bool(int(row["success_once"])), bool(int(row["success_at_end"])), row["success_step"])
    if said != (outcome.success_once, outcome.success_at_end, step):
        return True
    return any(
        not math.isclose(float(row[f"{when}_distance"]), distance_at(outcome, when), abs_tol=_SAME_DISTANCE)
        for when in ("initial", "min", "final")
    )


def _not_repeated(
    case: RunCase, evaluation: EvaluationFiles, sample: _Sample, differing: Sequence[tuple[int, Outcome]]
) -> Result:
    """Say which episodes do not repeat; for certain, if that is all in favour of the number, or all against it."""
    i, outcome = differing[0]
    row = evaluation.rows[i]
    unit = evaluation.summary["distance_unit"]
    claimed = [bool(int(evaluation.rows[i]["success_once"])) for i, _ in differing]
    flips = list(zip(claimed, [outcome.success_once for _, outcome in differing], strict=True))
    lost, won = flips.count((True, False)), flips.count((False, True))
    message = (
        f"{len(differing)} of {len(sample.episodes)} episodes of {evaluation.folder}, run again, end otherwise: {lost} "
        f"successes are failures, {won} failures are successes. Episode {i} ended {float(row['final_distance']):.4f} "
        f"{unit} from the goal ({_result(int(row['success_once']))}), run again {distance_at(outcome, 'final'):.4f} "
        f"({_result(outcome.success_once)})"
    )
    evidence, fix = evaluation.folder / "episodes.csv", _again(case, evaluation)
    takes_sides = mcnemar(lost, won) < 0.05
    if evaluation.summary["versions"] != case.policy.contract.versions or case.policy.views:
        message = f"{message}: other versions, another renderer, or edited."
        return suspected(message, evidence, fix, severity="critical" if takes_sides else "warning")
    if takes_sides:
        return critical(
            f"{message}. Rounding takes no side: the result was edited, or is another policy's.", evidence, fix
        )
    return suspected(
        f"{message}. On another processor or GPU that may be rounding; on this one, it was edited, or of another policy "
        "or environment.", evidence, fix, severity="critical",
    )  # fmt: skip


def _result(succeeded: object) -> str:
    return "success" if succeeded else "failure"


@CHECKS.add("controls do not repeat", stage="rollouts", how_to_verify="run them again")
def controls_repeat(case: RunCase) -> Result:
    """Do the controls do here what the evaluation says that they did?"""
    for evaluation in _evaluations(case):
        init_states = [InitialState.of(evaluation.task, init_state) for init_state in evaluation.init_states]
        for who, said in evaluation.summary["baselines"].items():
            if who not in _CONTROLS:  # of the policy: see its own episodes
                continue
            now = success_rate(case.roll(_CONTROLS[who](), init_states[: said["num"]], stop_at_success=True))
            if (now.successes, now.num) != (said["successes"], said["num"]):
                return suspected(
                    f"the control '{who}' of {evaluation.folder} succeeds {now} times, summary.json says "
                    f"{said['successes']} of {said['num']}: another processor or environment, or edited.",
                    evaluation.folder / "summary.json", _again(case, evaluation),
                )  # fmt: skip
    return ruled_out("The controls, run again, succeed as often as the evaluations say.")


_CONTROLS: dict[str, Callable[[], Agent]] = {"expert": ExpertAgent, "nothing": ZeroActionAgent, "random": RandomAgent}


@CHECKS.add("crashed episodes", stage="rollouts", how_to_verify="run them again")
def crashes(case: RunCase) -> Result:
    """Did the simulation break down?"""
    for evaluation in _evaluations(case):
        crashed = [row["episode"] for row in evaluation.rows if row["crash"]]
        if crashed:
            return warning(
                f"{len(crashed)} episodes of {evaluation.folder} crashed, and count as failed: "
                f"{', '.join(crashed[:5])}.", evaluation.folder / "episodes.csv", _again(case, evaluation),
            )  # fmt: skip
    return ruled_out("No episode crashed.")


@CHECKS.add("success for nothing", stage="statistics", how_to_verify="compare with the controls")
def baselines(case: RunCase) -> Result:
    """Does doing nothing, or anything, succeed too?"""
    for evaluation in _evaluations(case):
        for who, message in (("nothing", "doing nothing"), ("random", "random actions")):
            rate = evaluation.summary["baselines"].get(who)
            if rate and rate["low"] > 0.2:
                return warning(
                    f"{message} succeed{'s' if who == 'nothing' else ''} {rate['successes']} of {rate['num']} times from "
                    f"the starts of {evaluation.folder}: success there means little.",
                    evaluation.folder / "summary.json", _again(case, evaluation),
                )  # fmt: skip
    return ruled_out("Neither doing nothing nor random actions succeed.")


@CHECKS.add("too few episodes", stage="statistics", how_to_verify="evaluate from more starts")
def enough(case: RunCase) -> Result:
    """Is the success rate known well enough to say anything?"""
    for evaluation in _evaluations(case):
        num, num_distinct = len(evaluation.init_states), len(distinct(evaluation.init_states))
        if num_distinct < num:
            return critical(
                f"{num} episodes of {evaluation.folder} begin from {num_distinct} distinct starts: an interval over "
                f"{num} is too narrow.", evaluation.folder / "init_states.json", _again(case, evaluation),
            )  # fmt: skip
        if num < _ENOUGH:
            rate = Rate(evaluation.summary["success_once"]["successes"], num)
            return warning(
                f"{evaluation.folder} has {num} episodes: success {rate}.", evaluation.folder / "summary.json",
                _again(case, evaluation, episodes=100),
            )  # fmt: skip
    return ruled_out("Every evaluation has enough episodes, from as many starts.")


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the first option that differs, with both values; "" if none does."""
    of_ours = flatten(json.loads(json.dumps(ours)))  # whose tuples are lists in a file
    return next(
        (f"{key}={value}, not {of_ours.get(key)}" for key, value in theirs.items() if value != of_ours.get(key)),
        "",
    )


def _evaluations(case: RunCase) -> list[EvaluationFiles]:
    if case.evaluations:
        return case.evaluations
    gone = [str(folder) for folder in noted_evaluations(case.folder) if not folder.exists()]
    moved = f" (those in {', '.join(gone)} are gone)" if gone else ""
    raise ActKitError(f"This run was not evaluated{moved}: act eval {quoted(case.folder)}")


def _is_current(case: RunCase, evaluation: EvaluationFiles) -> bool:
    """Tell whether an evaluation is of the weights that are now called best, not of earlier or later ones."""
    summary = evaluation.summary
    weights = case.policy.weights_hash
    return bool(summary["policy_step"] == case.policy.contract.step and summary.get("weights", weights) == weights)


def _again(case: RunCase, evaluation: EvaluationFiles, *, episodes: int | None = None) -> str:
    """Return the command that evaluates as an evaluation did, into a new folder."""
    init_state_set, used = evaluation.summary["init_state_set"], evaluation.summary["chunking"]
    kind = init_state_set["kind"]
    options = ["--episodes", str(episodes or init_state_set["num"]), "--seed", str(init_state_set["seed"])]
    if kind == "file":
        options = ["--init-states", str(evaluation.folder / "init_states.json")]
    elif kind != "test":
        options += ["--init-states", str(kind)]
    if used["temporal_ensemble"] != case.policy.chunking.temporal_ensemble:
        options.append("--temporal-ensemble" if used["temporal_ensemble"] else "--no-temporal-ensemble")
    if used["n_action_steps"] != case.policy.chunking.n_action_steps:
        options += ["--n-action-steps", str(used["n_action_steps"])]
    return case.evaluate_with(_beside(evaluation), *options)


def _fresh(case: RunCase, evaluation: EvaluationFiles) -> str:
    """Return the command that evaluates from as many fresh initial states, into a new folder."""
    return case.evaluate_with(_beside(evaluation), "--episodes", str(max(_ENOUGH, len(evaluation.rows))))


def _beside(evaluation: EvaluationFiles) -> Path:
    of_several = evaluation.folder.parent
    return free_beside(of_several if (of_several / "summary.json").exists() else evaluation.folder)
