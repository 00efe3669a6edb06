"""Page of the evaluation of one task, next to the files of :mod:`act_kit.eval.files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from act_kit.eval.failure_modes import FAILURE_MODES
from act_kit.eval.files import write_evaluation
from act_kit.eval.results import Evaluation, summarize
from act_kit.eval.stages import MEANINGS
from act_kit.eval.sweep import COLUMNS, WARNING, SweepRow, table_rows
from act_kit.pages import figure_uri, video_uri, write_page
from act_kit.reports.evaluation_figures import distance_figure, map_figure
from act_kit.sim.tasks import get_task

_BASELINES = {
    "expert": "the scripted expert, same initial states",
    "zero actions": "zero actions, same initial states",
    "random": "random actions, same initial states",
    "demonstrated initial states": "the policy, from demonstrated initial states",
}


def baseline_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the names of the baselines and their success rates."""
    return [(_BASELINES[name], str(rate)) for name, rate in evaluation.baselines.items()]


def terminal_table(evaluation: Evaluation) -> Table:
    """Return the result as a table."""
    init_state_set = evaluation.init_state_set
    unit = get_task(evaluation.task).unit
    num, num_distinct = len(init_state_set.init_states), init_state_set.num_distinct
    title = f"{evaluation.task}: {num} {init_state_set.kind} initial states, {num_distinct} distinct"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("success", Text(str(evaluation.success), style="bold"))
    table.add_row("success at the last step", Text(str(evaluation.success_at_end)))
    for when in ("initial", "min", "final"):
        table.add_row(f"{when} distance (mean)", f"{evaluation.mean_distance(when):.3f} {unit}")
    table.add_row("furthest from the demonstrated states", evaluation.far_text)
    table.add_row(
        "episodes that reached", Text(", ".join(f"{stage} {count}" for stage, count in evaluation.stage_counts.items()))
    )
    if evaluation.failures:
        table.add_row("failures", Text(", ".join(f"{mode} {count}" for mode, count in evaluation.failures.items())))
    for name, rate in baseline_rows(evaluation):
        table.add_row(f"baseline: {name}", Text(rate))
    return table


def write_results(
    evaluation: Evaluation, out: Path, videos: Mapping[int, Path] | None = None, sweep: Sequence[SweepRow] = ()
) -> Path:
    """Write all files except the videos into ``out``, and return the path of the page."""
    videos = videos or {}
    write_evaluation(evaluation, out, videos, sweep)
    bins = evaluation.success_by_distance
    page = out / "report.html"
    write_page(
        page,
        "evaluation.html.j2",
        {
            "title": f"{evaluation.task}: success {evaluation.success}",
            "evaluation": evaluation,
            "summary": summarize(evaluation),
            "baselines": baseline_rows(evaluation),
            "meanings": {**MEANINGS, **FAILURE_MODES},
            "map": figure_uri(map_figure(evaluation)),
            "bins": bins,
            "distance_figure": figure_uri(distance_figure(bins)) if bins else None,
            "sweep": {"columns": COLUMNS, "rows": table_rows(sweep), "warning": WARNING},
            "episodes": [_page_row(evaluation, i, videos.get(i)) for i in range(len(evaluation.episodes))],
        },
    )
    return page


def _page_row(evaluation: Evaluation, index: int, video: Path | None) -> dict[str, Any]:
    """Return the cells of an episode on the page, in a form that can be sorted."""
    episode, init_state = evaluation.episodes[index], evaluation.init_state_set.init_states[index]
    nearest, largest_z = episode.distance_to_nearest_demo, episode.largest_z
    return {
        "failure_mode": episode.failure_mode or "success",
        "video": video_uri(video) if video else "",
        "cells": {
            "episode": index,
            "result": "success" if episode.success_once else "failure",
            "failure mode": episode.failure_mode or "",
            "furthest stage": episode.furthest_stage or "none",
            "success step": "" if episode.success_step is None else episode.success_step,
            "min distance": f"{episode.min_distance:.3f}",
            "final distance": f"{episode.final_distance:.3f}",
            "nearest demonstration": "n/a" if nearest is None else f"{nearest:.3f}",
            "largest z": "n/a" if largest_z is None else f"{largest_z:.1f}",
            "clipped": f"{100 * episode.clip_fraction:.1f} %",
            "initial state": " ".join(f"{x:.3f}" for x in init_state.rand_vec),
            **({"crash": episode.crash or ""} if evaluation.crashes else {}),
        },
    }
