"""Output files of the evaluation of one task.

They are ``init_states.json``, ``episodes.csv``, ``summary.json``, ``report.html``, and ``sweep.json`` after a sweep.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from act_kit.eval.distance_to_demos import Bin, divide
from act_kit.eval.evaluate import EpisodeResult, Evaluation, distance_at, success_rate
from act_kit.eval.failure_modes import FAILURE_MODES, failure_mode
from act_kit.eval.stages import MEANINGS, furthest_stage
from act_kit.eval.sweep import COLUMNS, WARNING, SweepRow, table_rows, write_sweep
from act_kit.files import write_json
from act_kit.pages import figure_uri, video_uri, write_page
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation_figures import distance_figure, map_figure
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.training.run import config_of
from act_kit.versions import versions

_BASELINES = {
    "expert": "the scripted expert, same initial states",
    "zero actions": "zero actions, same initial states",
    "random": "random actions, same initial states",
    "demonstrated initial states": "the policy, from demonstrated initial states",
}


def summarize(evaluation: Evaluation, policy: Policy) -> dict[str, Any]:
    """Return the results, the baselines and the provenance of an evaluation as plain values."""
    task = get_task(evaluation.init_state_set.task)
    datasets = [data for data in policy.metadata.datasets if data.task == task.name]
    return {
        "task": task.name,
        "success_once": evaluation.success.to_dict(),
        "success_at_end": evaluation.success_at_end.to_dict(),
        "success_rule": task.success_rule,
        "distance_unit": task.unit,
        "distance": {when: evaluation.mean_distance(when) for when in ("initial", "min", "final")},
        "closed_distance_fraction": evaluation.closed_distance_fraction,
        "largest_z": evaluation.largest_z,
        "num_far": evaluation.num_far,
        "clip_fraction": evaluation.clip_fraction,
        "crashes": evaluation.crashes,
        "stage_counts": evaluation.stage_counts,
        "failures": evaluation.failures,
        "success_by_distance_to_nearest_demo": [
            {"low": each.low, "high": each.high, "success_once": each.rate.to_dict()}
            for each in success_by_distance(evaluation)
        ],
        "baselines": {name: success_rate(outcomes).to_dict() for name, outcomes in evaluation.baselines.items()},
        "interpretation": evaluation.interpretation,
        "engine": evaluation.engine,
        "init_state_set": {
            "kind": evaluation.init_state_set.kind,
            "seed": evaluation.init_state_set.seed,
            "num": len(evaluation.init_state_set.init_states),
            "num_distinct": evaluation.init_state_set.num_distinct,
            "hash": evaluation.init_state_set.hash,
        },
        "dataset": {
            "fingerprint": "; ".join(data.fingerprint for data in datasets),
            "command": "; ".join(data.command for data in datasets),
        },
        "weights": policy.weights_hash,
        **provenance(policy),
    }


def provenance(policy: Policy) -> dict[str, Any]:
    """Return the versions, the chunking and the training of a policy as plain values, for comparisons."""
    return {
        "horizon": HORIZON,
        "chunking": asdict(policy.chunking),
        "policy_step": policy.metadata.step,
        "versions": versions(),
        "device": policy.device.type,
        "training": {
            "checkpoint": None if policy.folder is None else str(policy.folder),
            "config": None if policy.folder is None else config_of(policy.folder),
            "data": [
                {"task": data.task, "fingerprint": data.fingerprint, "command": data.command}
                for data in policy.metadata.datasets
            ],
            "versions": policy.metadata.versions,
            "views": policy.metadata.views and asdict(policy.metadata.views),
            "gl_renderer": policy.metadata.gl_renderer,
        },
    }


def success_by_distance(evaluation: Evaluation) -> list[Bin]:
    """Return success by the distance to the nearest demonstration; no bins if the distances are unknown."""
    distances: list[float] = []
    successes: list[bool] = []
    for episode in evaluation.episodes:
        if episode.distance_to_nearest_demo is not None:
            distances.append(episode.distance_to_nearest_demo)
            successes.append(episode.outcome.success_once)
    return divide(distances, successes) if distances else []


def baseline_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the names of the baselines and their success rates."""
    return [(_BASELINES[name], str(success_rate(outcomes))) for name, outcomes in evaluation.baselines.items()]


def terminal_table(evaluation: Evaluation) -> Table:
    """Return the result as a table."""
    init_state_set = evaluation.init_state_set
    unit = get_task(init_state_set.task).unit
    num, num_distinct = len(init_state_set.init_states), init_state_set.num_distinct
    title = f"{init_state_set.task}: {num} {init_state_set.kind} initial states, {num_distinct} distinct"
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
    evaluation: Evaluation, policy: Policy, out: Path, videos: Mapping[int, Path], sweep: Sequence[SweepRow] = ()
) -> Path:
    """Write all files except the videos into ``out``, and return the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation.init_state_set.save(out / "init_states.json")
    table = []
    for index, episode in enumerate(evaluation.episodes):
        video = str(videos[index].relative_to(out)) if index in videos else ""
        table.append(_episode_row(index, episode, video))
    with (out / "episodes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    summary = summarize(evaluation, policy)
    write_json(out / "summary.json", summary)
    if sweep:
        write_sweep(sweep, out / "sweep.json")
    bins = success_by_distance(evaluation)
    page = out / "report.html"
    write_page(
        page,
        "evaluation.html.j2",
        {
            "title": f"{evaluation.init_state_set.task}: success {evaluation.success}",
            "evaluation": evaluation,
            "summary": summary,
            "baselines": baseline_rows(evaluation),
            "meanings": {**MEANINGS, **FAILURE_MODES},
            "map": figure_uri(map_figure(evaluation, policy)),
            "bins": bins,
            "distance_figure": figure_uri(distance_figure(bins)) if bins else None,
            "sweep": {"columns": COLUMNS, "rows": table_rows(sweep), "warning": WARNING},
            "episodes": [
                _page_row(i, episode, videos.get(i), with_crash=bool(evaluation.crashes))
                for i, episode in enumerate(evaluation.episodes)
            ],
        },
    )
    return page


def _page_row(index: int, episode: EpisodeResult, video: Path | None, *, with_crash: bool) -> dict[str, Any]:
    """Return the cells of an episode on the page, in a form that can be sorted."""
    outcome, nearest = episode.outcome, episode.distance_to_nearest_demo
    return {
        "failure_mode": failure_mode(outcome) or "success",
        "video": video_uri(video) if video else "",
        "cells": {
            "episode": index,
            "result": "success" if outcome.success_once else "failure",
            "failure mode": failure_mode(outcome) or "",
            "furthest stage": furthest_stage(outcome) or "none",
            "success step": "" if outcome.success_step is None else outcome.success_step,
            "min distance": f"{distance_at(outcome, 'min'):.3f}",
            "final distance": f"{distance_at(outcome, 'final'):.3f}",
            "nearest demonstration": "n/a" if nearest is None else f"{nearest:.3f}",
            "largest z": f"{episode.largest_z:.1f}",
            "clipped": f"{100 * outcome.clip_fraction:.1f} %",
            "initial state": " ".join(f"{x:.3f}" for x in outcome.init_state.rand_vec),
            **({"crash": outcome.crash or ""} if with_crash else {}),
        },
    }


def _episode_row(index: int, episode: EpisodeResult, video: str) -> dict[str, Any]:
    """Return the columns of an episode in ``episodes.csv``."""
    outcome, nearest = episode.outcome, episode.distance_to_nearest_demo
    return {
        "episode": index,
        "init_state": " ".join(repr(x) for x in outcome.init_state.rand_vec),
        "success_once": int(outcome.success_once),
        "success_at_end": int(outcome.success_at_end),
        "success_step": "" if outcome.success_step is None else outcome.success_step,
        "initial_distance": f"{distance_at(outcome, 'initial'):.6f}",
        "min_distance": f"{distance_at(outcome, 'min'):.6f}",
        "final_distance": f"{distance_at(outcome, 'final'):.6f}",
        # All digits: after rounding, two episodes at the edge of a bin could swap bins.
        "distance_to_nearest_demo": "" if nearest is None else repr(nearest),
        "largest_z": f"{episode.largest_z:.3f}",
        "clip_fraction": f"{outcome.clip_fraction:.4f}",
        "furthest_stage": furthest_stage(outcome) or "",
        "failure_mode": failure_mode(outcome) or "",
        "num_steps": len(outcome),
        "crash": outcome.crash or "",
        "video": video,
    }
