"""What the evaluation of a task leaves behind: ``init_states.json``, ``episodes.csv``, ``summary.json``, ``report.html``;
and ``sweep.json``, if that was asked for."""

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
from act_kit.eval.failure_modes import LABELS, failure_mode
from act_kit.eval.stages import MEANINGS, furthest
from act_kit.eval.sweep import COLUMNS, WARNING, SweepRow, table_rows, write_sweep
from act_kit.files import write_json
from act_kit.pages import figure_uri, video_uri, write_page
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation_figures import map_figure, nearness_figure
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.statistics import Rate
from act_kit.training.run import config_of
from act_kit.versions import versions

_CONTROLS = {
    "expert": "the scripted expert, same starts",
    "nothing": "doing nothing, same starts",
    "random": "random actions, same starts",
    "demonstrated starts": "the policy, from demonstrated starts",
}


def summarize(evaluation: Evaluation, policy: Policy) -> dict[str, Any]:
    """Return everything a reader needs to believe the number, as plain values."""
    task = get_task(evaluation.init_state_set.task)
    shown = [data for data in policy.contract.demonstrations if data.task == task.name]
    return {
        "task": task.name,
        "success_once": rate_values(evaluation.success),
        "success_at_end": rate_values(evaluation.success_at_end),
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
        "success_by_nearest_demonstration": [
            {"low": each.low, "high": each.high, "success_once": rate_values(each.rate)}
            for each in by_nearness(evaluation)
        ],
        "baselines": {who: rate_values(success_rate(outcomes)) for who, outcomes in evaluation.baselines.items()},
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
            "fingerprint": "; ".join(data.fingerprint for data in shown),
            "command": "; ".join(data.command for data in shown),
        },
        "weights": policy.weights_hash,
        **made_by(policy),
    }


def made_by(policy: Policy) -> dict[str, Any]:
    """Return what ran, and how it was trained, as plain values: what :mod:`act_kit.compare.compare` holds side by side."""
    return {
        "horizon": HORIZON,
        "chunking": asdict(policy.chunking),
        "policy_step": policy.contract.step,
        "versions": versions(),
        "device": policy.device.type,
        "training": {
            "checkpoint": None if policy.folder is None else str(policy.folder),
            "config": None if policy.folder is None else config_of(policy.folder),
            "data": [
                {"task": data.task, "fingerprint": data.fingerprint, "command": data.command}
                for data in policy.contract.demonstrations
            ],
            "versions": policy.contract.versions,
            "views": policy.contract.views and asdict(policy.contract.views),
            "gl_renderer": policy.contract.gl_renderer,
        },
    }


def rate_values(rate: Rate) -> dict[str, float]:
    """Return a rate as plain values."""
    low, high = rate.interval
    return {"successes": rate.successes, "num": rate.num, "value": rate.value, "low": low, "high": high}


def by_nearness(evaluation: Evaluation) -> list[Bin]:
    """Return success by the distance to the nearest demonstration; nothing where that is not known."""
    known = [
        (episode.distance_to_nearest_demo, episode.outcome.success_once)
        for episode in evaluation.episodes
        if episode.distance_to_nearest_demo is not None
    ]
    return divide(*zip(*known, strict=True)) if known else []


def baseline_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the controls and their success."""
    return [(_CONTROLS[who], str(success_rate(outcomes))) for who, outcomes in evaluation.baselines.items()]


def terminal_table(evaluation: Evaluation) -> Table:
    """Return the result as a table."""
    unit = get_task(evaluation.init_state_set.task).unit
    init_state_set = evaluation.init_state_set
    table = Table(
        title=f"{init_state_set.task}: {len(init_state_set.init_states)} {init_state_set.kind} starts, {init_state_set.num_distinct} distinct",
        title_justify="left",
        show_header=False,
    )
    table.add_row("success", Text(str(evaluation.success), style="bold"))
    table.add_row("success at the end of the horizon", Text(str(evaluation.success_at_end)))
    for when in ("initial", "min", "final"):
        table.add_row(f"{when} distance (mean)", f"{evaluation.mean_distance(when):.3f} {unit}")
    table.add_row("furthest from the demonstrated states", evaluation.far_text)
    table.add_row("episodes that got so far", Text(", ".join(f"{s} {n}" for s, n in evaluation.stage_counts.items())))
    if evaluation.failures:
        table.add_row("failures", Text(", ".join(f"{what} {n}" for what, n in evaluation.failures.items())))
    for who, rate in baseline_rows(evaluation):
        table.add_row(f"control: {who}", Text(rate))
    return table


def write_results(
    evaluation: Evaluation, policy: Policy, out: Path, videos: Mapping[int, Path], sweep: Sequence[SweepRow] = ()
) -> Path:
    """Write everything but the videos into ``out``, and return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation.init_state_set.save(out / "init_states.json")
    table = _episode_table(evaluation, out, videos)
    with (out / "episodes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    summary = summarize(evaluation, policy)
    write_json(out / "summary.json", summary)
    if sweep:
        write_sweep(sweep, out / "sweep.json")
    bins = by_nearness(evaluation)
    page = out / "report.html"
    write_page(
        page,
        "evaluation.html.j2",
        {
            "title": f"{evaluation.init_state_set.task}: success {evaluation.success}",
            "evaluation": evaluation,
            "summary": summary,
            "baselines": baseline_rows(evaluation),
            "meanings": {**MEANINGS, **LABELS},
            "map": figure_uri(map_figure(evaluation, policy)),
            "bins": bins,
            "nearness": figure_uri(nearness_figure(bins)) if bins else None,
            "sweep": {"columns": COLUMNS, "rows": table_rows(sweep), "warning": WARNING},
            "episodes": [
                _page_row(i, episode, videos.get(i), with_crash=bool(evaluation.crashes))
                for i, episode in enumerate(evaluation.episodes)
            ],
        },
    )
    return page


def _page_row(index: int, episode: EpisodeResult, video: Path | None, *, with_crash: bool) -> dict[str, Any]:
    """Return what the page shows of an episode: cells that sort as numbers, where they are numbers."""
    outcome, nearest = episode.outcome, episode.distance_to_nearest_demo
    return {
        "failure_mode": failure_mode(outcome) or "success",
        "video": video_uri(video) if video else "",
        "cells": {
            "episode": index,
            "result": "success" if outcome.success_once else "failure",
            "failure_mode": failure_mode(outcome) or "",
            "got as far as": furthest(outcome) or "nothing",
            "success step": "" if outcome.success_step is None else outcome.success_step,
            "min distance": f"{distance_at(outcome, 'min'):.3f}",
            "final distance": f"{distance_at(outcome, 'final'):.3f}",
            "nearest demonstration": "n/a" if nearest is None else f"{nearest:.3f}",
            "largest z": f"{episode.largest_z:.1f}",
            "clipped": f"{100 * outcome.clip_fraction:.1f} %",
            "init_state": " ".join(f"{x:.3f}" for x in outcome.init_state.rand_vec),
            **({"crash": outcome.crash or ""} if with_crash else {}),
        },
    }


def _episode_table(evaluation: Evaluation, out: Path, videos: Mapping[int, Path]) -> list[dict[str, Any]]:
    return [
        {
            "episode": i,
            "init_state": " ".join(repr(x) for x in episode.outcome.init_state.rand_vec),
            "success_once": int(episode.outcome.success_once),
            "success_at_end": int(episode.outcome.success_at_end),
            "success_step": "" if episode.outcome.success_step is None else episode.outcome.success_step,
            "initial_distance": f"{distance_at(episode.outcome, 'initial'):.6f}",
            "min_distance": f"{distance_at(episode.outcome, 'min'):.6f}",
            "final_distance": f"{distance_at(episode.outcome, 'final'):.6f}",
            # To the last digit: rounded, two at the edge of a bin could change places.
            "distance_to_nearest_demo": ""
            if episode.distance_to_nearest_demo is None
            else repr(episode.distance_to_nearest_demo),
            "largest_z": f"{episode.largest_z:.3f}",
            "clip_fraction": f"{episode.outcome.clip_fraction:.4f}",
            "furthest_stage": furthest(episode.outcome) or "",
            "failure_mode": failure_mode(episode.outcome) or "",
            "num_steps": len(episode.outcome),
            "crash": episode.outcome.crash or "",
            "video": str(videos[i].relative_to(out)) if i in videos else "",
        }
        for i, episode in enumerate(evaluation.episodes)
    ]
