"""Overview of the evaluation of several tasks: one row per task, and means by difficulty and over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from act_kit.eval.evaluate import Evaluation, success_rate
from act_kit.files import write_json
from act_kit.pages import write_page
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import provenance
from act_kit.sim.tasks import Difficulty, get_task
from act_kit.statistics import MacroAverageRate, Rate

COLUMNS = ("task", "difficulty", "success", "at the last step", "final distance", "expert", "failures")


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


def overview_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return the result as a table."""
    table = Table(*COLUMNS, title=Text(overview_title(evaluations)), title_justify="left")
    for row in task_rows(evaluations):
        table.add_row(*map(Text, row))
    table.add_section()
    for row in mean_rows(evaluations):
        table.add_row(*map(Text, row))
    return table


def task_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Return the row of each task, with the columns :data:`COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for evaluation in evaluations:
        task = get_task(evaluation.init_state_set.task)
        distance = f"{evaluation.mean_distance('final'):.3f} {task.unit}"
        success = str(evaluation.success), str(evaluation.success_at_end)
        failures = ", ".join(f"{mode} {count}" for mode, count in evaluation.failures.items())
        rows.append((task.name, task.group, *success, distance, str(_expert(evaluation) or "not measured"), failures))
    return rows


def mean_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Return the rows of the means, with the same columns; distances of different tasks are not averaged."""
    rows: list[tuple[str, ...]] = []
    for name, members in _groups(evaluations).items():
        means = _means(members)
        success = str(means["success_once"]), str(means["success_at_end"])
        count = f"{len(members)} task{'s' if len(members) > 1 else ''}"
        rows.append((f"mean of {count}", name, *success, "", str(means["expert"] or "not measured"), ""))
    return rows


def write_overview(evaluations: Sequence[Evaluation], policy: Policy, out: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` of all tasks into ``out``, and return the path of the page."""
    summary = summarize_all(evaluations, policy)
    write_json(out / "summary.json", summary)
    page = out / "report.html"
    write_page(
        page,
        "overview.html.j2",
        {
            "title": overview_title(evaluations),
            "columns": COLUMNS,
            "tasks": task_rows(evaluations),
            "means": mean_rows(evaluations),
            "interpretations": {
                task: values["interpretation"] for task, values in summary["tasks"].items() if values["interpretation"]
            },
            "summary": summary,
            "commands": [data.command for data in policy.metadata.datasets],
        },
    )
    return page


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
