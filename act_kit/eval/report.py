"""What the evaluation of a task leaves behind: ``starts.json``, ``episodes.csv``, ``summary.json``, ``report.html``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.datasets.coverage import draw_axes, panels, place
from act_kit.eval.evaluate import Evaluation, distance_at, success_rate
from act_kit.statistics import Rate
from act_kit.files import write_json
from act_kit.pages import GREEN, GREY, RED, figure_uri, new_maps, video_uri, write_page
from act_kit.policy.policy import Policy
from act_kit.sim.starts import stack
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.training.run import config_of
from act_kit.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTROLS = {
    "expert": "the scripted expert, same starts",
    "nothing": "doing nothing, same starts",
    "random": "random actions, same starts",
    "demonstrated starts": "the policy, from demonstrated starts",
}


def summarise(evaluation: Evaluation, policy: Policy) -> dict[str, Any]:
    """Return everything a reader needs to believe the number, as plain values."""
    task = get_task(evaluation.evalset.task)
    shown = [data for data in policy.contract.demonstrations if data.task == task.name]
    return {
        "task": task.name,
        "success_once": rate_values(evaluation.success),
        "success_at_end": rate_values(evaluation.success_at_end),
        "success_rule": task.success_rule,
        "distance_unit": task.unit,
        "distance": {when: evaluation.mean_distance(when) for when in ("initial", "min", "final")},
        "closed_distance_fraction": 1 - evaluation.mean_distance("final") / evaluation.mean_distance("initial"),
        "largest_z": max(episode.largest_z for episode in evaluation.episodes),
        "clip_fraction": float(np.mean([outcome.clip_fraction for outcome in evaluation.outcomes])),
        "crashes": [i for i, outcome in enumerate(evaluation.outcomes) if outcome.crash],
        "controls": {who: rate_values(success_rate(outcomes)) for who, outcomes in evaluation.controls.items()},
        "reading": evaluation.reading,
        "engine": evaluation.engine,
        "evalset": {
            "kind": evaluation.evalset.kind,
            "seed": evaluation.evalset.seed,
            "num": len(evaluation.evalset.starts),
            "num_distinct": evaluation.evalset.num_distinct,
            "hash": evaluation.evalset.hash,
        },
        "dataset": {
            "fingerprint": "; ".join(data.fingerprint for data in shown),
            "command": "; ".join(data.command for data in shown),
        },
        **made_by(policy),
    }


def made_by(policy: Policy) -> dict[str, Any]:
    """Return what ran, and how it was trained, as plain values: what :mod:`act_kit.eval.compare` holds side by side."""
    return {
        "horizon": HORIZON,
        "execution": asdict(policy.execution),
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


def success_figure(rows: Mapping[str, tuple[Evaluation, Policy]]) -> Figure:
    """Draw where policies of one task succeeded and failed, over the starts each was shown: a row of maps per policy."""
    task = get_task(next(iter(rows.values()))[0].evalset.task)
    pairs = panels(task)
    figure = new_maps(len(pairs), num_rows=len(rows))
    grid = np.array(figure.axes).reshape(len(rows), len(pairs))
    labels: dict[str, Any] = {}
    for line, (name, (evaluation, policy)) in zip(grid, rows.items(), strict=True):
        rand_vecs = stack(evaluation.evalset.starts)
        succeeded = np.array([outcome.success_once for outcome in evaluation.outcomes])
        shown = np.array(policy.contract.starts_of(task.name))
        line[0].set_title(name, loc="left", fontsize=10)
        for axes, pair in zip(line, pairs, strict=True):
            draw_axes(axes, task, pair)
            labels["demonstrated"] = axes.scatter(*place(shown, pair), s=40, color=GREY, marker="+")
            for mask, colour, label in ((succeeded, GREEN, "success"), (~succeeded, RED, "failure")):
                if mask.any():
                    labels[label] = axes.scatter(*place(rand_vecs[mask], pair), s=16, color=colour, linewidths=0)
    figure.legend(list(labels.values()), list(labels), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def control_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the controls and their success."""
    return [(_CONTROLS[who], str(success_rate(outcomes))) for who, outcomes in evaluation.controls.items()]


def terminal_table(evaluation: Evaluation) -> Table:
    """Return the result as a table."""
    unit = get_task(evaluation.evalset.task).unit
    evalset = evaluation.evalset
    table = Table(
        title=f"{evalset.task}: {len(evalset.starts)} {evalset.kind} starts, {evalset.num_distinct} distinct",
        title_justify="left",
        show_header=False,
    )
    table.add_row("success", Text(str(evaluation.success), style="bold"))
    table.add_row("success at the end of the horizon", Text(str(evaluation.success_at_end)))
    for when in ("initial", "min", "final"):
        table.add_row(f"{when} distance (mean)", f"{evaluation.mean_distance(when):.3f} {unit}")
    for who, rate in control_rows(evaluation):
        table.add_row(f"control: {who}", Text(rate))
    return table


def write_results(evaluation: Evaluation, policy: Policy, out: Path, videos: Mapping[int, Path]) -> Path:
    """Write everything but the videos into ``out``, and return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation.evalset.save(out / "starts.json")
    table = _episode_table(evaluation, out, videos)
    with (out / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    summary = summarise(evaluation, policy)
    write_json(out / "summary.json", summary)
    page = out / "report.html"
    write_page(
        page,
        "evaluation.html.j2",
        {
            "title": f"{evaluation.evalset.task}: success {evaluation.success}",
            "evaluation": evaluation,
            "summary": summary,
            "controls": control_rows(evaluation),
            "map": figure_uri(success_figure({"": (evaluation, policy)})),
            "episodes": table,
            "videos": [(i, evaluation.outcomes[i], video_uri(path)) for i, path in videos.items()],
        },
    )
    return page


def _episode_table(evaluation: Evaluation, out: Path, videos: Mapping[int, Path]) -> list[dict[str, Any]]:
    return [
        {
            "episode": i,
            "start": " ".join(repr(x) for x in episode.outcome.start.rand_vec),
            "success_once": int(episode.outcome.success_once),
            "success_at_end": int(episode.outcome.success_at_end),
            "success_step": "" if episode.outcome.success_step is None else episode.outcome.success_step,
            "initial_distance": f"{distance_at(episode.outcome, 'initial'):.6f}",
            "min_distance": f"{distance_at(episode.outcome, 'min'):.6f}",
            "final_distance": f"{distance_at(episode.outcome, 'final'):.6f}",
            "nearest_demonstration": f"{episode.nearest_demonstration:.6f}",
            "largest_z": f"{episode.largest_z:.3f}",
            "clip_fraction": f"{episode.outcome.clip_fraction:.4f}",
            "num_steps": len(episode.outcome),
            "crash": episode.outcome.crash or "",
            "video": str(videos[i].relative_to(out)) if i in videos else "",
        }
        for i, episode in enumerate(evaluation.episodes)
    ]
