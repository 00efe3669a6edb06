"""Output of a comparison: ``compare.json``, ``compare.html`` and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.compare.compare import Comparison, Pair, points
from act_kit.compare.experiments import Method
from act_kit.compare.modes import bimodal_modes, mean_of
from act_kit.files import write_json
from act_kit.pages import BLUE, GRAY, GREEN, ORANGE, RED, figure_uri, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"better": "green", "worse": "red", "no difference shown": "yellow"}
"""Colors of verdicts; all others are red."""

METHOD_COLUMNS = ("", "training seeds", "each seed", "mean [95 %, for seeds of the same mode]")
PAIR_COLUMNS = ("compared", "task", "difference", "p", "p after Holm", "verdict")


def methods_table(methods: Sequence[Method]) -> Table:
    """Return the success of every seed and the means as a table."""
    table = Table(*METHOD_COLUMNS, title="Success", title_justify="left")
    for row in method_rows(methods):
        table.add_row(*map(Text, row))
    return table


def method_rows(methods: Sequence[Method]) -> list[tuple[str, ...]]:
    """Return the row of each method, with the columns :data:`METHOD_COLUMNS`; bimodal seeds have one mean per mode."""
    rows: list[tuple[str, ...]] = []
    for method in methods:
        each = ", ".join(f"{100 * seed.value:.1f} %" for seed in method.seeds)
        mean = mean_of(method)
        num_seeds = str(len(method.seeds))
        if method.missing:
            num_seeds += f" of {len(method.seeds) + len(method.missing)}"
        kinds = bimodal_modes(method)
        text = f"{100 * mean.value:.1f} % [{100 * mean.low:.0f}, {100 * mean.high:.0f} %]"
        if kinds:
            text = "bimodal: " + " and ".join(f"{len(kind)} at {100 * np.mean(kind):.1f} %" for kind in kinds)
        rows.append((method.label, num_seeds, each, text))
    return rows


def pair_rows(pair: Pair) -> list[tuple[str, ...]]:
    """Return the rows of a pair, over all tasks and per task, with :data:`PAIR_COLUMNS`; no p without a verdict."""
    first = "mean of the tasks" if pair.by_task else pair.a.tasks[0]
    results = {first: pair.result, **pair.by_task}
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        if result is not None:
            numbers = (points(result.difference), f"{result.difference.p:.3g}", f"{result.p_holm:.3g}", result.verdict)
            if pair.confounds:
                numbers = (numbers[0], "", "", pair.verdict)
            rows.append((f"{pair.b.label} – {pair.a.label}", name, *numbers))
    return rows


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write ``compare.json`` and ``compare.html`` into ``out``, and return the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", comparison.to_dict())
    rows: list[tuple[str, ...]] = []
    for pair in comparison.pairs:
        rows += pair_rows(pair)
    page = out / "compare.html"
    write_page(
        page,
        "compare.html.j2",
        {
            "title": " vs. ".join(method.label for method in comparison.methods),
            "comparison": comparison,
            "tasks": comparison.methods[0].tasks,
            "figure": figure_uri(success_figure(comparison.methods)),
            "methods": method_rows(comparison.methods),
            "method_columns": METHOD_COLUMNS,
            "columns": PAIR_COLUMNS,
            "rows": rows,
        },
    )
    return page


def success_figure(methods: Sequence[Method]) -> Figure:
    """Draw the success of every seed as a point, and the means, one line per method; narrow enough for a phone.

    A mean has its interval; the two means of bimodal seeds have none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 0.9 + 0.75 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(methods):
        mean, kinds = mean_of(method), bimodal_modes(method)
        color = (BLUE, ORANGE, GREEN, RED)[i % 4]
        if not kinds:
            axes.plot([100 * mean.low, 100 * mean.high], [-i, -i], color=color, linewidth=2)
        for value in [np.mean(kind) for kind in kinds or [[mean.value]]]:
            axes.plot(100 * value, -i, "|", color=color, markersize=16, markeredgewidth=2.5)
        if len(method.seeds) > 1:
            for j, seed in enumerate(method.seeds):
                axes.plot(100 * seed.value, -i - 0.15 - 0.06 * (j % 4), "o", color=color, alpha=0.6, markersize=6)
        axes.text(0, -i + 0.2, method.label, color=color, fontsize=10)
    axes.set(xlim=(-2, 102), ylim=(0.4 - len(methods), 0.6), yticks=[], xlabel="success, %")
    axes.grid(axis="x", color=GRAY, linewidth=0.5)
    axes.spines[["left", "right", "top"]].set_visible(False)
    return figure
