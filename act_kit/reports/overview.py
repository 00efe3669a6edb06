"""Overview of the evaluation of several tasks: one row per task, and means by difficulty and over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from act_kit.eval import files
from act_kit.eval.results import Evaluation, group_by_difficulty, mean_rates, summarize_all
from act_kit.pages import write_page
from act_kit.sim.tasks import get_task

COLUMNS = ("task", "difficulty", "success", "at the last step", "final distance", "expert", "failures")


def overview_title(evaluations: Sequence[Evaluation]) -> str:
    """Return a line with the number of tasks and initial states, and the mean success."""
    kind = evaluations[0].init_state_set.kind
    num = sum(len(evaluation.episodes) for evaluation in evaluations)
    mean = mean_rates(evaluations)["success_once"]
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
        task = get_task(evaluation.task)
        distance = f"{evaluation.mean_distance('final'):.3f} {task.unit}"
        success = str(evaluation.success), str(evaluation.success_at_end)
        expert = str(evaluation.baselines.get("expert") or "not measured")
        failures = ", ".join(f"{mode} {count}" for mode, count in evaluation.failures.items())
        rows.append((task.name, task.group, *success, distance, expert, failures))
    return rows


def mean_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Return the rows of the means, with the same columns; distances of different tasks are not averaged."""
    rows: list[tuple[str, ...]] = []
    for name, members in group_by_difficulty(evaluations).items():
        means = mean_rates(members)
        success = str(means["success_once"]), str(means["success_at_end"])
        count = f"{len(members)} task{'s' if len(members) > 1 else ''}"
        rows.append((f"mean of {count}", name, *success, "", str(means["expert"] or "not measured"), ""))
    return rows


def write_overview(evaluations: Sequence[Evaluation], out: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` of all tasks into ``out``, and return the path of the page."""
    files.write_overview(evaluations, out)
    summary = summarize_all(evaluations)
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
            "commands": [data["command"] for data in summary["training"]["data"]],
        },
    )
    return page
