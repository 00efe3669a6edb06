"""Do the evaluations on disk say what the policy does, and is that enough to believe?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from act_kit.diagnosis.case import EvaluationFiles, RunCase
from act_kit.diagnosis.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.diagnosis.generalisation import evenly
from act_kit.errors import ActKitError
from act_kit.eval.arms import flatten
from act_kit.eval.evalset import EvalSet
from act_kit.eval.evaluate import distance_at
from act_kit.overrides import to_dict
from act_kit.sim.starts import Start, StartLaw, distinct, shared, stack
from act_kit.sim.tasks import HORIZON
from act_kit.statistics import Rate

CHECKS = Checks[RunCase]()

_NUM_AGAIN = 6
"""Episodes of an evaluation that are run again."""

_ENOUGH = 30
"""Episodes below which a success rate says next to nothing: 0 of 30 may still be 11 %."""


@CHECKS.add("horizon too short", stage="environment", settle="count the steps of each episode")
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


@CHECKS.add("evaluation of another task or policy", stage="environment", settle="compare task, step and fingerprint")
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
        differing = _differing((summary.get("training") or {}).get("config") or {}, to_dict(case.config))
        if differing:
            return critical(
                f"{evaluation.folder} is of a run with {differing}: another run's, or config.yaml was edited.",
                evaluation.folder / "summary.json", _again(case, evaluation),
            )  # fmt: skip
    old = [evaluation for evaluation in _evaluations(case) if not _is_current(case, evaluation)]
    if old:
        return warning(
            f"{old[0].folder} is of step {old[0].summary['policy_step']}, the run's policy of step "
            f"{policy.contract.step}.", old[0].folder / "summary.json", _again(case, old[0]),
        )  # fmt: skip
    return ruled_out("The evaluations are of this run's policy.")


@CHECKS.add("evaluation damaged", stage="rollouts", settle="compare summary.json with episodes.csv and starts.json")
def whole(case: RunCase) -> Result:
    """Do the files of each evaluation agree with each other?"""
    evaluations, damaged = case.read_evaluations
    if damaged:
        return critical(damaged[0], case.folder, f"act eval {case.folder} --overwrite")
    for evaluation in _evaluations(case):
        wrong = _disagreement(evaluation)
        if wrong:
            return critical(
                f"the files of {evaluation.folder} do not belong together: {wrong}.", evaluation.folder,
                _again(case, evaluation),
            )  # fmt: skip
    return ruled_out(f"The files of {len(evaluations)} evaluations agree.")


def _disagreement(evaluation: EvaluationFiles) -> str:
    """Say where the files of an evaluation disagree; "" where they do not."""
    summary, rows = evaluation.summary, evaluation.rows
    try:
        evalset = EvalSet.load(evaluation.folder / "starts.json")
    except ActKitError as error:
        return str(error)
    if evalset.hash != summary["evalset"]["hash"] or evalset.task != evaluation.task:
        return "starts.json is not the set that summary.json names"
    if len(rows) != len(evalset.starts):
        return f"{len(rows)} rows in episodes.csv, {len(evalset.starts)} starts"
    for number, (row, start) in enumerate(zip(rows, evalset.starts, strict=True)):
        if [float(x) for x in row["start"].split()] != list(start.rand_vec):
            return f"row {number} of episodes.csv has another start than starts.json"
    for name in ("success_once", "success_at_end"):
        of_rows = sum(int(row[name]) for row in rows)
        if (of_rows, len(rows)) != (summary[name]["successes"], summary[name]["num"]):
            return (
                f"{of_rows} of {len(rows)} rows say {name}, summary.json says {summary[name]['successes']} of "
                f"{summary[name]['num']}"
            )
    final = float(np.mean([float(row["final_distance"]) for row in rows]))
    if abs(final - summary["distance"]["final"]) > 1e-5:
        said = summary["distance"]["final"]
        return f"the mean final distance of the rows is {final:.4f}, that of summary.json {said:.4f}"
    return ""


@CHECKS.add("evaluated on training starts", stage="rollouts", settle="compare starts.json with the dataset")
def disjoint(case: RunCase) -> Result:
    """Were the starts of an evaluation demonstrated?"""
    for evaluation in _evaluations(case):
        if evaluation.starts_file["kind"] == "dataset":
            continue
        seen = [start for store in case.stores if store.info.task == evaluation.task for start in store.recorded_starts]
        num = int(shared(evaluation.starts, np.array(seen)).sum())
        if num:
            return critical(
                f"{num} of the {len(evaluation.starts)} evaluation starts in {evaluation.folder} are training "
                "starts: success from them may be memory.", evaluation.folder / "starts.json", _again(case, evaluation),
            )  # fmt: skip
    unknown = [str(store.path) for store in case.stores if not store.has_starts]
    if unknown:
        return untested(f"Nobody recorded the starts of {', '.join(unknown)}.")
    return ruled_out("No evaluation start was demonstrated.")


@CHECKS.add("evaluated on selection starts", stage="rollouts", settle="compare starts.json with the selection's draw")
def not_selected_on(case: RunCase) -> Result:
    """Did the starts that report on the checkpoint choose it?"""
    if not case.config.selection.rollouts:
        return ruled_out("Nothing was selected.")
    for evaluation in _evaluations(case):
        law = StartLaw(evaluation.task)
        chose = stack(law.sample(case.config.selection.episodes, seed=case.config.trainer.seed, stream="select"))
        num = int(shared(evaluation.starts, chose).sum())
        if num:
            return critical(
                f"{num} of the evaluation starts in {evaluation.folder} are those that chose the checkpoint: the "
                "number flatters it.", evaluation.folder / "starts.json", _again(case, evaluation),
            )  # fmt: skip
    return ruled_out("The starts that chose the checkpoint are not those that report on it.")


@CHECKS.add("evaluation does not repeat", stage="rollouts", settle="run some of its episodes again")
def repeats(case: RunCase) -> Result:
    """Does the policy do here what the evaluation says that it did?"""
    of_this = [evaluation for evaluation in _evaluations(case) if _is_current(case, evaluation)]
    if not of_this:
        return untested("No evaluation is of the policy that the run has now.")
    for evaluation in of_this:
        used = evaluation.summary["execution"]
        policy = case.policy.with_execution(execute=int(used["execute"]), ensemble=bool(used["ensemble"]))
        chosen = evenly(np.arange(len(evaluation.rows)), _NUM_AGAIN)
        starts = [Start.of(evaluation.task, evaluation.starts[i]) for i in chosen]
        outcomes = case.act_from(policy, starts, to_the_end=True)
        for i, outcome in zip(chosen, outcomes, strict=True):
            row = evaluation.rows[i]
            said, now = float(row["final_distance"]), distance_at(outcome, "final")
            if bool(int(row["success_once"])) != outcome.success_once or abs(said - now) > 1e-4:
                says = (
                    f"episode {i} of {evaluation.folder} ended {said:.4f} {evaluation.summary['distance_unit']} from "
                    f"the goal ({'success' if int(row['success_once']) else 'failure'}), run again {now:.4f} "
                    f"({'success' if outcome.success_once else 'failure'})"
                )
                mend = _again(case, evaluation)
                if evaluation.summary["versions"] != case.policy.contract.versions or policy.views:
                    return suspected(f"{says}: other versions, or another renderer.", evaluation.folder, mend)
                return suspected(
                    f"{says}. On another processor or GPU that may be rounding; on this one, it was another policy, "
                    "or another environment.", evaluation.folder / "episodes.csv", mend, severity="critical",
                )  # fmt: skip
    return ruled_out("Episodes run again end where they ended.")


@CHECKS.add("crashed episodes", stage="rollouts", settle="run them again")
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


@CHECKS.add("success for nothing", stage="statistics", settle="compare with the controls")
def controls(case: RunCase) -> Result:
    """Does doing nothing, or anything, succeed too?"""
    for evaluation in _evaluations(case):
        for who, says in (("nothing", "doing nothing"), ("random", "random actions")):
            rate = evaluation.summary["controls"].get(who)
            if rate and rate["low"] > 0.2:
                return warning(
                    f"{says} succeed{'s' if who == 'nothing' else ''} {rate['successes']} of {rate['num']} times from "
                    f"the starts of {evaluation.folder}: success there means little.",
                    evaluation.folder / "summary.json", _again(case, evaluation),
                )  # fmt: skip
    return ruled_out("Neither doing nothing nor random actions succeed.")


@CHECKS.add("too few episodes", stage="statistics", settle="evaluate from more starts")
def enough(case: RunCase) -> Result:
    """Is the success rate known well enough to say anything?"""
    for evaluation in _evaluations(case):
        num, num_distinct = len(evaluation.starts), len(distinct(evaluation.starts))
        if num_distinct < num:
            return critical(
                f"{num} episodes of {evaluation.folder} begin from {num_distinct} distinct starts: an interval over "
                f"{num} is too narrow.", evaluation.folder / "starts.json", _again(case, evaluation),
            )  # fmt: skip
        if num < _ENOUGH:
            rate = Rate(evaluation.summary["success_once"]["successes"], num)
            return warning(
                f"{evaluation.folder} has {num} episodes: success {rate}.", evaluation.folder / "summary.json",
                f"{_again(case, evaluation)} --episodes 100",
            )  # fmt: skip
    return ruled_out("Every evaluation has enough episodes, from as many starts.")


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the first option that differs, with both values; "" if none does."""
    of_ours = flatten(json.loads(json.dumps(ours)))  # whose tuples are lists in a file
    return next(
        (
            f"{key}={value}, not {of_ours.get(key)}"
            for key, value in flatten(theirs).items()
            if value != of_ours.get(key)
        ),
        "",
    )


def _evaluations(case: RunCase) -> list[EvaluationFiles]:
    if not case.evaluations:
        raise ActKitError(f"This run was not evaluated: act eval {case.folder}")
    return case.evaluations


def _is_current(case: RunCase, evaluation: EvaluationFiles) -> bool:
    """Tell whether an evaluation is of the checkpoint that is now called best, not of an earlier or a later one."""
    return bool(evaluation.summary["policy_step"] == case.policy.contract.step)


def _again(case: RunCase, evaluation: EvaluationFiles) -> str:
    of_several = evaluation.folder.parent
    folder = of_several if (of_several / "summary.json").exists() else evaluation.folder
    return f"act eval {case.folder} --out {folder} --overwrite"
