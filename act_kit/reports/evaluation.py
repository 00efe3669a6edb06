"""The report of the evaluation of one task, next to the files of :mod:`act_kit.eval.files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from act_kit.eval.failure_modes import FAILURE_MODES
from act_kit.eval.files import write_evaluation
from act_kit.eval.protocols import describe_protocol
from act_kit.eval.results import Evaluation, summarize
from act_kit.eval.stages import MEANINGS
from act_kit.eval.sweep import COLUMNS, WARNING, SweepRow, table_rows
from act_kit.reports.figures import distance_figure, success_figures
from act_kit.reports.report import Cell, Chart, Column, Headline, Report, Section, Table, Video, text_columns
from act_kit.sim.tasks import get_task
from act_kit.statistics import GroupAverageRate, MacroAverageRate, Rate, percent, percent_ends
from act_kit.text import name_values

_BASELINES = {
    "expert": "the scripted expert, same initial states",
    "zero actions": "zero actions, same initial states",
    "random": "random actions, same initial states",
    "demonstrated initial states": "the policy, from demonstrated initial states",
}


def baseline_rows(evaluation: Evaluation) -> list[tuple[str, Rate]]:
    """Return the names of the baselines and their success rates."""
    return [(_BASELINES[name], rate) for name, rate in evaluation.baselines.items()]


def rate_headline(label: str, rate: Rate | MacroAverageRate | GroupAverageRate) -> Headline:
    """Return a success rate as a headline with its interval."""
    low, high = rate.interval or (0.0, 0.0)
    interval = "95 % interval {} to {} %".format(*percent_ends(low, high)) if rate.interval else ""
    counts = f"{rate.successes}/{rate.num}" if isinstance(rate, Rate) else mean_name(rate)
    return Headline(
        label=label,
        value=f"{percent(rate.value, 0 if isinstance(rate, Rate) else 1)} %",
        detail=", ".join(filter(None, (counts, interval))),
        interval=(low, rate.value, high) if rate.interval else None,
    )


def mean_name(rate: MacroAverageRate | GroupAverageRate) -> str:
    """Return what a mean is of."""
    num = len(rate.rates)
    of_groups = f"{len(rate.groups)} difficulties, " if isinstance(rate, GroupAverageRate) else ""
    return f"mean of {of_groups}{num} task{'s' if num > 1 else ''}"


def provenance_rows(summary: Mapping[str, Any], commands: Sequence[str]) -> list[tuple[str, str]]:
    """Return what determined the results: the policy, its data and the versions."""
    policy: list[tuple[str, str]] = []
    if summary["chunking"]:
        actions = f"{summary['chunking']['n_action_steps']} actions a query"
        if summary["chunking"]["temporal_ensemble"]:
            actions = "every step, ensembled"
        policy = [("policy", f"step {summary['policy_step']}, executing {actions}")]
    if "agent" in summary:
        agent = summary["agent"]
        policy = [("policy", f"{agent['name']} ({agent['wire']})" if "wire" in agent else agent["name"])]
    return [
        *policy,
        ("data", "; ".join(commands)),
        ("protocol", describe_protocol(summary)),
        ("versions", name_values(summary["versions"])),
    ]


def evaluation_report(
    evaluation: Evaluation, videos: Mapping[int, Path] | None = None, sweep: Sequence[SweepRow] = ()
) -> Report:
    """Return the report of the evaluation of one task; ``videos`` are the paths of the videos, by episode."""
    summary = summarize(evaluation)
    expert = evaluation.baselines.get("expert")
    judged = f"{summary['agent']['name']}, " if "agent" in summary else ""  # a run's page is in its own folder
    sections = [
        _maps(evaluation),
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
        title=f"{judged}{evaluation.task}: success {evaluation.success}",
        verdicts=[("FAIL", evaluation.interpretation)] if evaluation.interpretation else [],
        headlines=[
            rate_headline("success", evaluation.success),
            rate_headline("success at the last step", evaluation.success_at_end),
            Headline(
                label="mean final distance",
                value=f"{evaluation.mean_distance('final'):.3f} {summary['distance_unit']}",
                detail=f"from {evaluation.mean_distance('initial'):.3f} {summary['distance_unit']}",
            ),
            *([rate_headline(_BASELINES["expert"], expert)] if expert else []),
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
        ("protocol", describe_protocol(summary)),
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
    if evaluation.recognized:
        rows.append(("task recognized from the first state", evaluation.recognized))
        rows.append(("recognized tasks", name_values(evaluation.recognized_tasks)))
    rows += [
        ("furthest from the demonstrated states", far),
        ("actions outside [-1, 1]", f"{100 * evaluation.clip_fraction:.1f} %"),
        ("crashed episodes", ", ".join(map(str, evaluation.crashes)) or "none"),
        ("hash of the initial states", Cell(text=init_state_set.hash[:16], is_code=True)),
    ]
    title = f"{evaluation.task}: {num} {init_state_set.kind} initial states, {init_state_set.num_distinct} distinct"
    table = Table(columns=text_columns("", "result"), rows=rows)
    return Section(title=title, table=table, in_terminal=True, is_half=True)


def _stages(evaluation: Evaluation) -> Section:
    num = len(evaluation.episodes)
    rows, meanings = [], []
    for stage, count in evaluation.stage_counts.items():
        share = Cell(text=f"{percent(count / num)} %", share=count / num, title=MEANINGS[stage])
        rows.append((stage, share, f"{count}/{num}"))
        meanings.append(f"{stage}: {MEANINGS[stage]}.")
    table = Table(columns=[Column("stage"), Column("episodes that reached it"), Column("", digits=0)], rows=rows)
    explanation = f"Number of episodes that reached each stage or a later one. {' '.join(meanings)}"
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


def _maps(evaluation: Evaluation) -> Section:
    """Return the section with the maps of the initial states."""
    texts = {
        "grid": "A cell is one episode; the other dimensions of its initial state are random. Empty: the benchmark "
        "allows no initial state there.",
        "ood": "These initial states lie outside the box of the benchmark's distribution, by up to a quarter of its "
        "width. Compare the success rate with that of the scripted expert: where the expert fails too, the initial "
        "state may be infeasible.",
    }
    label = "Map of successes and failures over the demonstrated initial states"
    charts = [Chart(figure=figure, label=label) for figure in success_figures(evaluation)]
    text = texts.get(evaluation.init_state_set.kind, "")
    return Section(title="Success over initial states", text=text, charts=charts)


def _distances(evaluation: Evaluation) -> Section:
    title = "Success by distance to the nearest demonstration"
    bins = evaluation.success_by_distance
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
        episode = evaluation.episodes[i]
        caption = f"episode {i}: {episode.failure_mode or f'at step {episode.success_step}'}"
        shown.append(Video(path=path, caption=caption, is_success=episode.success_once, id=f"video-{i}"))
    return shown


def _episodes(evaluation: Evaluation, videos: Mapping[int, Path]) -> Section:
    """Return the section with the table of the episodes, which can be sorted and filtered."""
    unit = get_task(evaluation.task).unit
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
        mode = episode.failure_mode or ""
        result = "success" if episode.success_once else "failure"
        row: list[Any] = [
            i,
            Cell(text=result, level="OK" if episode.success_once else "FAIL"),
            mode,
            episode.furthest_stage or "none",
            "" if episode.success_step is None else episode.success_step,
            episode.min_distance,
            episode.final_distance,
            episode.distance_to_nearest_demo,
            episode.largest_z,
            100 * episode.clip_fraction,
            " ".join(map("{:.3f}".format, evaluation.init_states[i])),
        ]
        if videos:
            row.append(Cell(text="▶ video", href=f"#video-{i}") if i in videos else "")
        if evaluation.crashes:
            row.append(episode.crash or "")
        rows.append(row)
        tags.append(f"{result}|{mode}{'|video' if i in videos else ''}")
    num, num_succeeded = len(rows), evaluation.success.successes
    filters = [(f"all {num}", ""), (f"failures {num - num_succeeded}", "failure")]
    filters += [(f"{mode} {count}", mode) for mode, count in evaluation.failures.items()]
    filters.append((f"successes {num_succeeded}", "success"))
    if videos:
        filters.append((f"with video {len(videos)}", "video"))
    table = Table(columns=columns, rows=rows, id="episodes", is_sortable=True, filters=filters, tags=tags)
    return Section(title="Episodes", table=table)


def write_results(
    evaluation: Evaluation, out: Path, videos: Mapping[int, Path] | None = None, sweep: Sequence[SweepRow] = ()
) -> Path:
    """Write all files except the videos into ``out``, and return the path of the page."""
    write_evaluation(evaluation, out, videos, sweep)
    return evaluation_report(evaluation, videos, sweep).write(out / "report.html")
