"""The report of a comparison: the verdicts, the success of every method and seed, and the configuration differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from act_kit.comparison.compare import Comparison, Pair, points
from act_kit.comparison.experiments import Method
from act_kit.comparison.modes import bimodal_modes, mean_of
from act_kit.pages import BLUE, GREEN, PURPLE, RED, figure_text, new_figure
from act_kit.reports.report import Cell, Chart, Headline, Level, Report, Section, Table, text_columns
from act_kit.statistics import percent, percent_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS: dict[str, Level] = {"better": "OK", "no difference shown": "WARN"}
"""Levels of verdicts; all others are failures."""

_STYLES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"))
"""Color and marker of each method, in turn."""

_MAX_LABEL_LENGTH = 48
"""Number of characters of a method's label in the figure, which is narrow."""


def methods_table(methods: Sequence[Method]) -> Table:
    """Return the success of every seed and the means as a table."""
    columns = text_columns("method", "training seeds", "each seed", "mean [95 %, for seeds of the same mode]")
    return Table(columns=columns, rows=list(map(method_row, methods)), title="Success")


def method_row(method: Method) -> tuple[str, str, str, str]:
    """Return label, number of seeds, success of each, and mean; bimodal seeds have one mean per mode."""
    each = ", ".join(f"{percent(seed.value, 1)} %" for seed in method.seeds)
    num_seeds = str(len(method.seeds))
    if method.missing:
        num_seeds += f" of {len(method.seeds) + len(method.missing)}"
    mean, modes = mean_of(method), bimodal_modes(method)
    low, high = percent_ends(mean.low, mean.high)
    text = f"{percent(mean.value, 1)} % [{low}, {high} %]"
    if modes:
        text = "bimodal: " + " and ".join(f"{len(mode)} at {percent(float(np.mean(mode)), 1)} %" for mode in modes)
    return method.label, num_seeds, each, text


def _pair_rows(pair: Pair) -> list[tuple[str, ...]]:
    """Return the rows of a pair, over all tasks and per task; no p without a verdict."""
    rows: list[tuple[str, ...]] = []
    first = "mean of the tasks" if pair.by_task else pair.a.tasks[0]
    for name, result in {first: pair.result, **pair.by_task}.items():
        if result is not None:
            numbers = (points(result.difference), f"{result.difference.p:.3g}", f"{result.p_holm:.3g}", result.verdict)
            if pair.confounds:
                numbers = (numbers[0], "", "", pair.verdict)
            rows.append((f"{pair.b.label} – {pair.a.label}", name, *numbers))
    return rows


def comparison_report(comparison: Comparison) -> Report:
    """Return the report of a comparison."""
    methods = comparison.methods
    rows: list[tuple[str, ...]] = []
    verdicts: list[tuple[Level, str]] = []
    for pair in comparison.pairs:
        rows += _pair_rows(pair)
        verdicts.append((_LEVELS.get(pair.verdict, "FAIL"), pair.sentence))
    chart = Chart(
        figure=success_figure(methods),
        label="Success of every training seed, and the means with their intervals",
        caption="Points are training seeds, lines are 95 % intervals, bars are means.",
    )
    sections = [
        Section(
            title=f"Success of {', '.join(methods[0].tasks)}",
            charts=[chart],
            is_half=True,
        ),
        Section(
            title="Success of each training seed",
            table=methods_table(methods),
            in_terminal=True,
            is_half=True,
            explanation="An interval covers, for one checkpoint, other initial states; for several seeds, other seeds "
            "of the same mode and other initial states. No interval covers an unseen mode of seeds; the verdict bounds "
            "the fraction of such seeds. Bimodal seeds have two means and no interval. Episodes are never pooled over "
            "seeds.",
        ),
    ]
    if rows:
        columns = text_columns("compared", "task", "difference", "p", "p after Holm", "verdict")
        sections.append(
            Section(
                title="Differences in percentage points of success",
                table=Table(columns=columns, rows=rows),
                in_terminal=True,
                explanation="There is a difference if p after Holm is below 0.05. An interval is at the confidence of "
                "Holm's test of the difference, 95 % unless another is given, so it excludes 0 if and only if there is "
                "a difference.",
            )
        )
    sections += map(_differences, comparison.pairs)
    evaluations: list[tuple[Any, ...]] = []
    for method in methods:
        evaluations += _evaluation_rows(method)
    columns = text_columns("method", "seed", "task", "success", "initial states", "folder")
    sections.append(Section(title="Evaluations", table=Table(columns=columns, rows=evaluations)))
    return Report(
        kind="Comparison",
        title=" vs. ".join(method.label for method in methods),
        verdicts=verdicts,
        headlines=list(map(_headline, methods)),
        warnings=comparison.notes,
        sections=sections,
        data=comparison.to_dict(),
    )


def _headline(method: Method) -> Headline:
    mean = mean_of(method)
    seeds = f"{len(method.seeds)} training seed{'s' if len(method.seeds) > 1 else ''}"
    if bimodal_modes(method):
        return Headline(label=method.label, value="bimodal", detail=seeds)
    low, high = percent_ends(mean.low, mean.high)
    detail = f"95 % interval {low} to {high} %, {seeds}"
    interval = (max(0.0, mean.low), mean.value, min(1.0, mean.high))
    return Headline(label=method.label, value=f"{percent(mean.value, 1)} %", detail=detail, interval=interval)


def _differences(pair: Pair) -> Section:
    """Return the section with the configuration differences of two methods."""
    title = f"Configuration differences of {pair.a.label} and {pair.b.label}"
    if not pair.changes:
        return Section(title=title, text="None, except their training seeds.")
    rows = []
    for change in pair.changes:
        key = Cell(text=change.key, is_code=True)
        rows.append((key, change.a, change.b, "factor" if change.declared else "not declared"))
    return Section(title=title, table=Table(columns=text_columns("option", pair.a.label, pair.b.label, ""), rows=rows))


def _evaluation_rows(method: Method) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for seed in method.seeds:
        folder = Cell(text=str(seed.folder), is_code=True)
        for task, result in seed.tasks.items():
            init_states = Cell(text=result.init_state_set.hash[:12], is_code=True)
            success = f"{result.successes.sum()}/{len(result.successes)}"
            rows.append((method.label, seed.name, task, success, init_states, folder))
    for name, reason in method.missing.items():
        rows.append((method.label, name, "", "missing", "", reason))
    return rows


def success_figure(methods: Sequence[Method]) -> Figure:
    """Draw the success of every seed as a point, and the means, one line per method; narrow enough for a phone.

    A mean has its interval; the two means of bimodal seeds have none.
    """
    figure = new_figure()
    figure.set_size_inches(4.6, 0.9 + 0.75 * len(methods))
    (axes,) = figure.axes
    for i, method in enumerate(methods):
        mean, modes = mean_of(method), bimodal_modes(method)
        color, marker = _STYLES[i % len(_STYLES)]
        if not modes:
            axes.plot([100 * mean.low, 100 * mean.high], [-i, -i], color=color, linewidth=2)
        for mode in modes or [[mean.value]]:
            axes.plot(100 * np.mean(mode), -i, "|", color=color, markersize=16, markeredgewidth=2.5)
        if len(method.seeds) > 1:
            for j, seed in enumerate(method.seeds):
                height = -i - 0.15 - 0.06 * (j % 4)
                axes.plot(100 * seed.value, height, marker, color=color, alpha=0.6, markersize=6)
        axes.text(0, -i + 0.2, figure_text(method.label, _MAX_LABEL_LENGTH), fontsize=10)
    axes.set(xlim=(-2, 102), ylim=(0.4 - len(methods), 0.6), yticks=[], xlabel="success (%)")
    axes.spines["left"].set_visible(False)
    return figure
