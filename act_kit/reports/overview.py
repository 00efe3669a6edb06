"""The report of the evaluation of several tasks: a row per task, and means by difficulty and over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from act_kit.eval import files
from act_kit.eval.protocols import describe_protocol
from act_kit.eval.results import Evaluation, group_by_difficulty, mean_rates, protocol_means, summarize_all
from act_kit.reports.evaluation import provenance_rows, rate_headline
from act_kit.reports.report import Cell, Column, Headline, Level, Report, Section, Table
from act_kit.sim.tasks import get_task
from act_kit.text import name_values

_COLUMNS = (
    Column("task"),
    Column("difficulty"),
    Column("success", digits=0),
    Column("at the last step", digits=0),
    Column("final distance", digits=3),
    Column("expert", digits=0),
    Column("failures"),
)


def overview_title(evaluations: Sequence[Evaluation]) -> str:
    """Return a line with the number of tasks and initial states, and the mean success."""
    kind = evaluations[0].init_state_set.kind
    num = sum(len(evaluation.episodes) for evaluation in evaluations)
    mean = protocol_means(evaluations)["success_once"]
    of = ", mean of the difficulties" if evaluations[0].protocol.mean == "groups" else ""
    return f"{len(evaluations)} tasks, {num} {kind} initial states: success {mean}{of}"


def task_rows(evaluations: Sequence[Evaluation]) -> list[tuple[Any, ...]]:
    """Return the row of each task: its values, with a link to its page."""
    rows: list[tuple[Any, ...]] = []
    for evaluation in evaluations:
        task = get_task(evaluation.task)
        page = Cell(text=task.name, href=f"{task.name}/report.html")
        distance = f"{evaluation.mean_distance('final'):.3f} {task.unit}"
        failures = name_values(evaluation.failures)
        expert = evaluation.baselines.get("expert", "not measured")
        rows.append((page, task.group, evaluation.success, evaluation.success_at_end, distance, expert, failures))
    return rows


def mean_rows(evaluations: Sequence[Evaluation]) -> list[tuple[Any, ...]]:
    """Return the rows of the means, with the same columns; distances of different tasks are not averaged."""
    rows: list[tuple[Any, ...]] = []
    for name, members in group_by_difficulty(evaluations).items():
        means = mean_rates(members)
        count = f"mean of {len(members)} task{'s' if len(members) > 1 else ''}"
        expert = means["expert"] or "not measured"
        rows.append((count, name, means["success_once"], means["success_at_end"], "", expert, ""))
    return rows


def overview_report(evaluations: Sequence[Evaluation]) -> Report:
    """Return the report of all tasks; their own reports are in folders of their names."""
    summary, means = summarize_all(evaluations), protocol_means(evaluations)
    names = {"success_once": "success", "success_at_end": "success at the last step", "expert": "scripted expert"}
    verdicts: list[tuple[Level, str]] = []
    for evaluation in evaluations:
        if evaluation.interpretation:
            verdicts.append(("FAIL", f"{evaluation.task}: {evaluation.interpretation}"))
    headlines: list[Headline] = []
    for name, mean in means.items():
        if mean:
            headlines.append(rate_headline(names[name], mean))
    title = overview_title(evaluations)
    return Report(
        kind="Evaluation of several tasks",
        title=title,
        verdicts=verdicts,
        headlines=headlines,
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
        notes=[f"Protocol: {describe_protocol(summary)}"],
        provenance=provenance_rows(summary, [data["command"] for data in summary["training"]["data"]]),
        data=summary,
    )


def write_overview(evaluations: Sequence[Evaluation], out: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` of all tasks into ``out``, and return the path of the page."""
    files.write_overview(evaluations, out)
    return overview_report(evaluations).write(out / "report.html")
