"""Output files of the evaluation of one task.

They are ``init_states.json``, ``episodes.csv``, ``summary.json``, ``report.html``, and ``sweep.json`` after a sweep.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from act_kit.eval.distance_to_demos import Bin, divide
from act_kit.eval.evaluate import EpisodeResult, Evaluation, distance_at, success_rate
from act_kit.eval.failure_modes import FAILURE_MODES, failure_mode
from act_kit.eval.stages import MEANINGS, furthest_stage
from act_kit.eval.sweep import COLUMNS, WARNING, SweepRow, table_rows, write_sweep
from act_kit.policies.policy import Policy
from act_kit.reports.figures import distance_figure, success_figures
from act_kit.reports.report import Cell, Chart, Column, Headline, Report, Section, Table, Video, text_columns
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.statistics import MacroAverageRate, Rate
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
    datasets = [data for data in policy.metadata.demonstrations if data.task == task.name]
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
                for data in policy.metadata.demonstrations
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


def baseline_rows(evaluation: Evaluation) -> list[tuple[str, Rate]]:
    """Return the names of the baselines and their success rates."""
    return [(_BASELINES[name], success_rate(outcomes)) for name, outcomes in evaluation.baselines.items()]


def rate_headline(label: str, rate: Rate | MacroAverageRate) -> Headline:
    """Return a success rate as a headline with its interval."""
    low, high = rate.interval or (0.0, 0.0)
    interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %" if rate.interval else ""
    counts = f"{rate.successes}/{rate.num}" if isinstance(rate, Rate) else f"mean of {len(rate.rates)} tasks"
    return Headline(
        label=label,
        value=f"{100 * rate.value:.0f} %" if isinstance(rate, Rate) else f"{100 * rate.value:.1f} %",
        detail=", ".join(filter(None, (counts, interval))),
        interval=(low, rate.value, high) if rate.interval else None,
    )


def provenance_rows(summary: Mapping[str, Any], commands: Sequence[str]) -> list[tuple[str, str]]:
    """Return what determined the results: the policy, its data and the versions."""
    actions = f"{summary['chunking']['n_action_steps']} actions a query"
    if summary["chunking"]["temporal_ensemble"]:
        actions = "every step, ensembled"
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [
        ("policy", f"step {summary['policy_step']}, executing {actions}"),
        ("data", "; ".join(commands)),
        ("horizon", f"{summary['horizon']} steps"),
        ("versions", versions),
    ]


def evaluation_report(
    evaluation: Evaluation, policy: Policy, videos: Mapping[int, Path] | None = None, sweep: Sequence[SweepRow] = ()
) -> Report:
    """Return the report of the evaluation of one task; ``videos`` are the paths of the videos, by episode."""
    summary = summarize(evaluation, policy)
    expert = [rate_headline(name, rate) for name, rate in baseline_rows(evaluation) if "expert" in name]
    sections = [
        _maps(evaluation, policy),
        _results(evaluation, summary),
        _stages(evaluation),
        _failures(evaluation),
        _distances(evaluation),
    ]
    if sweep:
        note = (
            "Gained and lost: number of initial states in comparison with the evaluated setting; p: exact McNemar test."
        )
        table = Table(columns=text_columns(*COLUMNS), rows=table_rows(sweep), id="sweep")
        title = "Sweep: the same checkpoint and initial states with other chunking settings"
        sections.append(Section(title=title, text=WARNING, table=table, explanation=note))
    if videos:
        sections.append(Section(title="Videos", videos=_videos(evaluation, videos)))
    sections.append(_episodes(evaluation, videos or {}))
    return Report(
        kind="Evaluation",
        title=f"{evaluation.init_state_set.task}: success {evaluation.success}",
        verdicts=[("FAIL", evaluation.interpretation)] if evaluation.interpretation else [],
        headlines=[
            rate_headline("success", evaluation.success),
            rate_headline("success at the last step", evaluation.success_at_end),
            Headline(
                label="mean final distance",
                value=f"{evaluation.mean_distance('final'):.3f} {summary['distance_unit']}",
                detail=f"from {evaluation.mean_distance('initial'):.3f} {summary['distance_unit']}",
            ),
            *expert,
        ],
        sections=sections,
        provenance=provenance_rows(summary, [summary["dataset"]["command"]]),
        data=summary,
    )


def _results(evaluation: Evaluation, summary: Mapping[str, Any]) -> Section:
    """Return the section with the main numbers."""
    init_state_set, unit = evaluation.init_state_set, summary["distance_unit"]
    rows: list[tuple[Any, Any]] = [
        ("success (at any step, the benchmark's definition)", evaluation.success),
        ("success at the last step", evaluation.success_at_end),
        ("success criterion", summary["success_rule"]),
    ]
    for when, distance in summary["distance"].items():
        rows.append((f"{when} distance (mean)", f"{distance:.3f} {unit}"))
    for name, rate in baseline_rows(evaluation):
        rows.append((f"baseline: {name}", rate))
    explanation = (
        "Largest distance of any coordinate of any queried state from the mean of the demonstrated states, in their "
        "standard deviations (at least 1 cm each). Demonstrations themselves reach 2 to 5."
    )
    far = Cell(text=evaluation.far_text, level="WARN" if evaluation.num_far else None, title=explanation)
    num = len(init_state_set.init_states)
    rows += [
        ("furthest from the demonstrated states", far),
        ("actions outside [-1, 1]", f"{100 * evaluation.clip_fraction:.1f} %"),
        ("crashed episodes", ", ".join(map(str, evaluation.crashes)) or "none"),
        ("hash of the initial states", Cell(text=init_state_set.hash[:16], is_code=True)),
    ]
    title = f"{init_state_set.task}: {num} {init_state_set.kind} initial states, {init_state_set.num_distinct} distinct"
    table = Table(columns=text_columns("", "result"), rows=rows)
    return Section(title=title, table=table, in_terminal=True, is_half=True)


def _stages(evaluation: Evaluation) -> Section:
    num = len(evaluation.episodes)
    rows = []
    for stage, count in evaluation.stage_counts.items():
        share = Cell(text=f"{100 * count / num:.0f} %", share=count / num, title=MEANINGS[stage])
        rows.append((stage, share, f"{count}/{num}"))
    table = Table(columns=[Column("stage"), Column("episodes that reached it"), Column("", digits=0)], rows=rows)
    meanings = " ".join(f"{stage}: {MEANINGS[stage]}." for stage in evaluation.stage_counts)
    explanation = f"Number of episodes that reached each stage or a later one. {meanings}"
    return Section(title="Stages reached", table=table, explanation=explanation, is_half=True, in_terminal=True)


def _failures(evaluation: Evaluation) -> Section:
    failures = evaluation.failures
    if not failures:
        return Section(title="Failure modes", text="No failures.", is_half=True)
    columns = [Column("failure mode"), Column("episodes", digits=0), Column("meaning")]
    rows = [(mode, count, FAILURE_MODES[mode]) for mode, count in failures.items()]
    explanation = f"Each failure has one failure mode, the first that fits: {', '.join(FAILURE_MODES)}."
    table = Table(columns=columns, rows=rows)
    return Section(title="Failure modes", table=table, explanation=explanation, is_half=True, in_terminal=True)


def _maps(evaluation: Evaluation, policy: Policy) -> Section:
    """Return the section with the maps of the initial states."""
    texts = {
        "grid": "A cell is one episode; the other dimensions of its initial state are random. Empty: the benchmark "
        "allows no initial state there.",
        "ood": "These initial states lie outside the box of the benchmark's distribution, by up to a quarter of its "
        "width. Compare the success rate with that of the scripted expert: where the expert fails too, the initial "
        "state may be infeasible.",
    }
    label = "Map of successes and failures over the demonstrated initial states"
    charts = [Chart(figure=figure, label=label) for figure in success_figures(evaluation, policy)]
    text = texts.get(evaluation.init_state_set.kind, "")
    return Section(title="Success over initial states", text=text, charts=charts)


def _distances(evaluation: Evaluation) -> Section:
    title = "Success by distance to the nearest demonstration"
    bins = success_by_distance(evaluation)
    if not bins:
        text = "n/a: the initial states of the demonstrations were not recorded."
        return Section(title=title, text=text, is_half=True)
    label = "Success over the distance to the nearest demonstrated initial state"
    chart = Chart(figure=distance_figure(bins), label=label, caption="Lines: bins and 95 % intervals.")
    rows = [(f"{each.low:.3f} to {each.high:.3f}", each.rate) for each in bins]
    columns = [Column("distance", "box widths"), Column("success [95 %]", digits=0)]
    return Section(title=title, charts=[chart], table=Table(columns=columns, rows=rows), is_half=True)


def _videos(evaluation: Evaluation, videos: Mapping[int, Path]) -> list[Video]:
    shown = []
    for i, path in sorted(videos.items()):
        outcome = evaluation.outcomes[i]
        caption = f"episode {i}: {failure_mode(outcome) or f'at step {outcome.success_step}'}"
        shown.append(Video(path=path, caption=caption, is_success=outcome.success_once, id=f"video-{i}"))
    return shown


def _episodes(evaluation: Evaluation, videos: Mapping[int, Path]) -> Section:
    """Return the section with the table of the episodes, which can be sorted and filtered."""
    unit = get_task(evaluation.init_state_set.task).unit
    columns = [
        Column("episode", digits=0),
        *text_columns("result", "failure mode", "furthest stage"),
        Column("success step", digits=0),
        Column("min distance", unit, 3),
        Column("final distance", unit, 3),
        Column("nearest demonstration", "box widths", 3),
        Column("largest z", "std", 1),
        Column("clipped", "%", 1),
        Column("initial state", "m"),
    ]
    if videos:
        columns.append(Column("video"))
    if evaluation.crashes:
        columns.append(Column("crash"))
    rows, tags = [], []
    for i, episode in enumerate(evaluation.episodes):
        outcome, mode = episode.outcome, failure_mode(episode.outcome)
        result = "success" if outcome.success_once else "failure"
        row: list[Any] = [
            i,
            Cell(text=result, level="OK" if outcome.success_once else "FAIL"),
            mode or "",
            furthest_stage(outcome) or "none",
            "" if outcome.success_step is None else outcome.success_step,
            distance_at(outcome, "min"),
            distance_at(outcome, "final"),
            episode.distance_to_nearest_demo,
            episode.largest_z,
            100 * outcome.clip_fraction,
            " ".join(f"{x:.3f}" for x in outcome.init_state.rand_vec),
        ]
        if videos:
            row.append(Cell(text="▶ video", href=f"#video-{i}") if i in videos else "")
        if evaluation.crashes:
            row.append(outcome.crash or "")
        rows.append(row)
        tags.append(f"{result}|{mode or ''}{'|video' if i in videos else ''}")
    num, num_succeeded = len(rows), evaluation.success.successes
    filters = [(f"all {num}", ""), (f"failures {num - num_succeeded}", "failure")]
    filters += [(f"{mode} {count}", mode) for mode, count in evaluation.failures.items()]
    filters.append((f"successes {num_succeeded}", "success"))
    if videos:
        filters.append((f"with video {len(videos)}", "video"))
    table = Table(columns=columns, rows=rows, id="episodes", is_sortable=True, filters=filters, tags=tags)
    return Section(title="Episodes", table=table)


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
    if sweep:
        write_sweep(sweep, out / "sweep.json")
    return evaluation_report(evaluation, policy, videos, sweep).write(out / "report.html", out / "summary.json")


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
