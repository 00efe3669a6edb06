"""The evaluation of several tasks at a glance: a line of each, their means by difficulty and over all of them."""

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
from act_kit.reports.evaluation import made_by, rate_values
from act_kit.sim.tasks import Difficulty, get_task
from act_kit.statistics import MacroAverageRate, Rate

COLUMNS = ("task", "difficulty", "success", "at the end of the horizon", "final distance", "expert", "failures")


def summarize_all(evaluations: Sequence[Evaluation], policy: Policy) -> dict[str, Any]:
    """Return the means and every task's numbers, as plain values; each task's own summary has more."""
    tasks: dict[str, Any] = {}
    for evaluation in evaluations:
        task = get_task(evaluation.init_state_set.task)
        expert = _expert(evaluation)
        tasks[task.name] = {
            "group": task.group,
            "success_once": rate_values(evaluation.success),
            "success_at_end": rate_values(evaluation.success_at_end),
            "final_distance": evaluation.mean_distance("final"),
            "distance_unit": task.unit,
            "expert": expert and rate_values(expert),
            "interpretation": evaluation.interpretation,
        }
    return {
        "means": {
            name: {"num_tasks": len(members), **{what: _mean_values(mean) for what, mean in _means(members).items()}}
            for name, members in _groups(evaluations).items()
        },
        "tasks": tasks,
        **made_by(policy),
    }


def overview_title(evaluations: Sequence[Evaluation]) -> str:
    """Say what was measured and what came of it, in a line."""
    kind = evaluations[0].init_state_set.kind
    num = sum(len(evaluation.episodes) for evaluation in evaluations)
    mean = _means(evaluations)["success_once"]
    return f"{len(evaluations)} tasks, {num} {kind} starts: success {mean}"


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
    """Return each task's line of :data:`COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for evaluation in evaluations:
        task = get_task(evaluation.init_state_set.task)
        distance = f"{evaluation.mean_distance('final'):.3f} {task.unit}"
        success = str(evaluation.success), str(evaluation.success_at_end)
        failures = ", ".join(f"{what} {num}" for what, num in evaluation.failures.items())
        rows.append((task.name, task.group, *success, distance, str(_expert(evaluation) or "not measured"), failures))
    return rows


def mean_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Return the lines of the means, with the same columns; distances of several tasks have none."""
    rows: list[tuple[str, ...]] = []
    for name, members in _groups(evaluations).items():
        means = _means(members)
        success = str(means["success_once"]), str(means["success_at_end"])
        count = f"{len(members)} task{'s' if len(members) > 1 else ''}"
        rows.append((f"mean of {count}", name, *success, "", str(means["expert"] or "not measured"), ""))
    return rows


def write_overview(evaluations: Sequence[Evaluation], policy: Policy, out: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` of all tasks into ``out``, and return the page's path."""
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
            "commands": [data.command for data in policy.contract.demonstrations],
        },
    )
    return page


def _groups(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Divide tasks by difficulty, the easy ones first; ``all`` comes last."""
    groups: dict[str, list[Evaluation]] = {}
    for group in get_args(Difficulty):
        members = [evaluation for evaluation in evaluations if get_task(evaluation.init_state_set.task).group == group]
        if members:
            groups[group] = members
    return {**groups, "all": list(evaluations)}


def _means(evaluations: Sequence[Evaluation]) -> dict[str, MacroAverageRate | None]:
    """Return the mean success of tasks, once and at the end, and of their experts where all were measured."""
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
