"""The report of the evaluation of several tasks: a row per task, and means by difficulty and over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from act_kit.eval.evaluate import Evaluation, success_rate
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import provenance, provenance_rows, rate_headline
from act_kit.reports.report import Cell, Column, Level, Report, Section, Table
from act_kit.sim.tasks import Difficulty, get_task
from act_kit.statistics import MacroAverageRate, Rate

_COLUMNS = (
    Column("task"),
    Column("difficulty"),
    Column("success", digits=0),
    Column("at the last step", digits=0),
    Column("final distance", digits=3),
    Column("expert", digits=0),
    Column("failures"),
)


def summarize_all(evaluations: Sequence[Evaluation], policy: Policy) -> dict[str, Any]:
    """Return the means and the main numbers of each task as plain values; the summary of a task has all of them."""
    tasks: dict[str, Any] = {}
    for evaluation in evaluations:
        task = get_task(evaluation.init_state_set.task)
        expert = _expert(evaluation)
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
    for name, members in _groups(evaluations).items():
        means[name] = {"num_tasks": len(members)}
        for quantity, mean in _means(members).items():
            means[name][quantity] = _mean_values(mean)
    return {
        "means": means,
        "tasks": tasks,
        **provenance(policy),
    }


def overview_title(evaluations: Sequence[Evaluation]) -> str:
    """Return a line with the number of tasks and initial states, and the mean success."""
    kind = evaluations[0].init_state_set.kind
    num = sum(len(evaluation.episodes) for evaluation in evaluations)
    mean = _means(evaluations)["success_once"]
    return f"{len(evaluations)} tasks, {num} {kind} initial states: success {mean}"


def task_rows(evaluations: Sequence[Evaluation]) -> list[tuple[Any, ...]]:
    """Return the row of each task: its values, with a link to its page."""
    rows: list[tuple[Any, ...]] = []
    for evaluation in evaluations:
        task = get_task(evaluation.init_state_set.task)
        page = Cell(text=task.name, href=f"{task.name}/report.html")
        distance = f"{evaluation.mean_distance('final'):.3f} {task.unit}"
        failures = ", ".join(f"{mode} {count}" for mode, count in evaluation.failures.items())
        expert = _expert(evaluation) or "not measured"
        rows.append((page, task.group, evaluation.success, evaluation.success_at_end, distance, expert, failures))
    return rows


def mean_rows(evaluations: Sequence[Evaluation]) -> list[tuple[Any, ...]]:
    """Return the rows of the means, with the same columns; distances of different tasks are not averaged."""
    rows: list[tuple[Any, ...]] = []
    for name, members in _groups(evaluations).items():
        means = _means(members)
        count = f"mean of {len(members)} task{'s' if len(members) > 1 else ''}"
        expert = means["expert"] or "not measured"
        rows.append((count, name, means["success_once"], means["success_at_end"], "", expert, ""))
    return rows


def overview_report(evaluations: Sequence[Evaluation], policy: Policy) -> Report:
    """Return the report of all tasks; their own reports are in folders of their names."""
    summary, means = summarize_all(evaluations, policy), _means(evaluations)
    names = {"success_once": "success", "success_at_end": "success at the last step", "expert": "scripted expert"}
    verdicts: list[tuple[Level, str]] = []
    for evaluation in evaluations:
        if evaluation.interpretation:
            verdicts.append(("FAIL", f"{evaluation.init_state_set.task}: {evaluation.interpretation}"))
    title = overview_title(evaluations)
    return Report(
        kind="Evaluation of several tasks",
        title=title,
        verdicts=verdicts,
        headlines=[rate_headline(names[name], mean) for name, mean in means.items() if mean],
        sections=[
            Section(
                title="Tasks",
                table=Table(columns=_COLUMNS, rows=task_rows(evaluations), is_sortable=True),
                explanation="The page of a task has its maps, baselines, episodes and videos. In brackets: Wilson 95 % "
                "intervals.",
                in_terminal=True,
            ),
            Section(
                title="Means, with equal weight per task",
                table=Table(columns=_COLUMNS, rows=mean_rows(evaluations)),
                explanation="Intervals of the means pool all episodes, which is conservative; there are none if tasks "
                "have different numbers of episodes.",
                in_terminal=True,
            ),
        ],
        provenance=provenance_rows(summary, [data.command for data in policy.metadata.demonstrations]),
        data=summary,
    )


def _groups(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group tasks by difficulty, the easy ones first; ``all`` is last."""
    groups: dict[str, list[Evaluation]] = {}
    for group in get_args(Difficulty):
        members = [evaluation for evaluation in evaluations if get_task(evaluation.init_state_set.task).group == group]
        if members:
            groups[group] = members
    return {**groups, "all": list(evaluations)}


def _means(evaluations: Sequence[Evaluation]) -> dict[str, MacroAverageRate | None]:
    """Return the mean success of tasks, at any step and at the end, and of their experts if all were measured."""
    experts = [expert for expert in map(_expert, evaluations) if expert]
    return {
        "success_once": MacroAverageRate(tuple(evaluation.success for evaluation in evaluations)),
        "success_at_end": MacroAverageRate(tuple(evaluation.success_at_end for evaluation in evaluations)),
        "expert": MacroAverageRate(tuple(experts)) if len(experts) == len(evaluations) else None,
    }


def _mean_values(mean: MacroAverageRate | None) -> dict[str, float | None] | None:
    if mean is None:
        return None
    low, high = mean.interval or (None, None)
    return {"value": mean.value, "low": low, "high": high}


def _expert(evaluation: Evaluation) -> Rate | None:
    outcomes = evaluation.baselines.get("expert")
    return success_rate(outcomes) if outcomes else None
