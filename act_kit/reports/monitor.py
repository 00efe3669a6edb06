"""The report of a monitor: its false alarms, what it detects and when, and the distances of the episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from act_kit.monitoring.result import MonitoredEpisode, MonitorResult
from act_kit.pages import BLUE, GRAY, GREEN, ORANGE, RED, new_figure
from act_kit.reports.evaluation import rate_headline
from act_kit.reports.figures import add_legend
from act_kit.reports.report import Cell, Chart, Column, Headline, Level, Report, Section, Table, text_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_SHOWN = 40
"""Largest number of successes, and of failures, whose distances are drawn."""

_NUM_EXAMPLES = 3


def monitor_report(result: MonitorResult) -> Report:
    """Return the report of a monitor."""
    level: Level = "OK" if result.is_better_than_chance else "WARN"
    verdict = result.sentence
    if not result.can_judge_detection:
        is_ood = result.config.init_states == "ood"
        verdict += f". Fix: {'' if is_ood else 'act monitor RUN --init-states ood, or '}more --episodes"
    warnings: list[str] = []
    alarms = result.false_alarms
    if alarms and alarms.interval[0] > result.config.alpha:
        reason = "these initial states differ from those of the calibration"
        if result.config.init_states == "test":
            reason = "a calibration by few episodes can be that wrong by chance; calibrate with more --episodes"
        warnings.append(f"More false alarms than the {100 * result.config.alpha:g} % of the calibration: {reason}.")
    return Report(
        kind="Monitor",
        title=f"{result.task}: {result.sentence}",
        verdicts=[(level, verdict)],
        headlines=_headlines(result),
        warnings=warnings,
        sections=[_numbers(result), _distances(result), _areas(result), *_examples(result), _episodes(result)],
        provenance=[
            ("policy", result.provenance["checkpoint"]),
            ("data", "; ".join(result.provenance["datasets"])),
            ("initial states", f"{result.config.init_states}, {result.provenance['init_state_set'][:16]}"),
        ],
        data=result.to_dict(),
    )


def _headlines(result: MonitorResult) -> list[Headline]:
    found: list[Headline] = []
    for label, rate in (
        ("false alarms", result.false_alarms),
        ("failures detected", result.detections),
        (f"failures detected before step {result.time_limit}", result.early_detections),
    ):
        if rate:
            found.append(rate_headline(label, rate))
    return found


def _numbers(result: MonitorResult) -> Section:
    num = result.calibration.successes
    rows = [
        ("successes that calibrated the threshold", f"{num} of {result.calibration.num} episodes"),
        ("threshold of the distance", f"{result.threshold:.3g}"),
        ("false alarms, in episodes that succeeded", result.false_alarms or "n/a"),
        ("alarms, in episodes that failed", result.detections or "n/a"),
        (f"… before step {result.time_limit}, the time limit", result.early_detections or "n/a"),
        ("median step of the alarm, in failures", _median(result.alarm_steps)),
        ("median steps from the alarm to the end, in failures", _median(result.lead_steps)),
    ]
    explanation = (
        f"The threshold is exceeded in a new successful episode with a probability of at most {result.config.alpha:g}, "
        "on average over calibrations, if its initial state is drawn as those of the calibration (split conformal "
        f"prediction). The time limit is calibrated in the same way: successful episodes end before it. A monitor that "
        "raises its alarm later is no better than a clock."
    )
    title = f"{result.task}: {len(result.episodes)} {result.config.init_states} initial states"
    table = Table(columns=text_columns("quantity", "value"), rows=rows)
    return Section(title=title, table=table, explanation=explanation, is_half=True, in_terminal=True)


def _median(steps: Sequence[int]) -> str:
    return f"{np.median(steps):.0f}" if steps else "n/a"


def _areas(result: MonitorResult) -> Section:
    title = "Area under the ROC curve by step"
    if not result.auc_by_step:
        text = "At no step, five failures and five later successes were running."
        return Section(title=title, text=text)
    rows = []
    for step, area in result.auc_by_step.items():
        rows.append((step, str(area), area.num_positives, area.num_negatives))
    columns = [Column("step", digits=0), Column("area [95 %]"), Column("failures", digits=0)]
    chart = Chart(
        figure=_area_figure(result),
        label="Area under the ROC curve by step, with its interval",
        caption="Largest distance so far, of the episodes that have not ended: failures against later successes.",
    )
    table = Table(columns=[*columns, Column("later successes", digits=0)], rows=rows)
    return Section(title=title, charts=[chart], table=table, in_terminal=True)


def _area_figure(result: MonitorResult) -> Figure:
    figure = new_figure()
    (axes,) = figure.axes
    points = np.array([(step, area.value, *area.interval) for step, area in result.auc_by_step.items()])
    steps, value, low, high = points.T
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(steps, value, color=BLUE, marker="o", markersize=4)
    axes.axhline(0.5, color=GRAY, linestyle=":")
    axes.set_ylim(-0.02, 1.02)
    axes.set(xlabel="step", ylabel="area under the ROC curve")
    return figure


def _distances(result: MonitorResult) -> Section:
    figure = new_figure()
    (axes,) = figure.axes
    for label, episodes, color in (("success", result.successes, GREEN), ("failure", result.failures, RED)):
        for i, episode in enumerate(episodes[:_MAX_SHOWN]):
            style = "-" if episode.success else "--"
            name = "" if i else label
            axes.plot(episode.distances, color=color, linestyle=style, linewidth=0.8, alpha=0.7, label=name)
    axes.axhline(result.threshold, color=ORANGE, linewidth=2, label="threshold")
    axes.axvline(result.time_limit, color=BLUE, linestyle=":", label="time limit")
    axes.set_xlim(0, 3 * result.time_limit)
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="distance to demonstrated states")
    add_legend(figure)
    label = "Distance to the demonstrated states over time, of successful and failed episodes, with the threshold"
    return Section(title="Distances over time", charts=[Chart(figure=figure, label=label)], is_half=True)


def _examples(result: MonitorResult) -> list[Section]:
    """Return the section with the failures of the earliest, the median and the latest alarm; none without failures."""
    failures = sorted(result.failures, key=_alarm_order)
    if len(failures) < _NUM_EXAMPLES:
        return []
    charts: list[Chart] = []
    for i in np.linspace(0, len(failures) - 1, _NUM_EXAMPLES).astype(int):
        step = failures[i].alarm_step
        said = "no alarm" if step is None else f"alarm at step {step}"
        label = f"Distance to the demonstrated states over time in a failed episode, {said}"
        charts.append(Chart(figure=_example_figure(failures[i], result.threshold), label=label, caption=said))
    return [Section(title="Failures with an early, a median and a late alarm", charts=charts)]


def _alarm_order(episode: MonitoredEpisode) -> float:
    return np.inf if episode.alarm_step is None else episode.alarm_step


def _example_figure(episode: MonitoredEpisode, threshold: float) -> Figure:
    figure = new_figure()
    (axes,) = figure.axes
    axes.plot(episode.distances, color=RED)
    axes.axhline(threshold, color=ORANGE, linewidth=2)
    if episode.alarm_step is not None:
        axes.axvline(episode.alarm_step, color=BLUE, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="distance to demonstrated states")
    return figure


def _episodes(result: MonitorResult) -> Section:
    columns = [Column("episode", digits=0), *text_columns("result", "alarm")]
    columns += [Column("steps", digits=0), Column("largest distance", digits=2)]
    rows, tags = [], []
    for i, episode in enumerate(result.episodes):
        word = "success" if episode.success else "failure"
        step = episode.alarm_step
        alarm = Cell(text="none" if step is None else f"step {step}", value=_alarm_order(episode))
        rows.append(
            [
                i,
                Cell(text=word, level="OK" if episode.success else "FAIL"),
                alarm,
                episode.num_steps,
                float(episode.distances.max()),
            ]
        )
        tags.append(word)
    filters = [("all", ""), ("failures", "failure"), ("successes", "success")]
    table = Table(columns=columns, rows=rows, id="episodes", is_sortable=True, filters=filters, tags=tags)
    return Section(title="Episodes", table=table)
