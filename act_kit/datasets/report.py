"""The diversity report of a dataset: a table for the terminal, JSON for programs, a page for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.datasets.checks import Level
from act_kit.datasets.coverage import coverage_figure, distribution_figure, growth_figure, panels
from act_kit.datasets.diversity import Diversity
from act_kit.datasets.quality import Quality
from act_kit.datasets.store import EpisodeStore
from act_kit.files import write_json
from act_kit.pages import figure_uri, write_page
from act_kit.sim.starts import stack
from act_kit.sim.tasks import get_task

COLOURS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}

Row = tuple[str, str, str]


def rows(diversity: Diversity) -> list[Row]:
    """Return what is measured of the starts: what, the value, and what it should be."""
    d = diversity
    table = [
        ("distinct starts", f"{d.num_distinct} of {d.num}", "all"),
        ("starts that repeat another", f"{100 * d.duplicate_fraction:.0f} %", "at most 2 %"),
        ("starts that the task never has", f"{d.num_outside}", "0"),
        ("attempts that failed", f"{d.num_failed} of {d.num_attempts}", "few; each leaves a hole"),
        ("validation episodes that training has seen", f"{d.num_leaked} of {d.num_validation}", "0"),
    ]
    if "evaluation set" in d.against:
        table.append(("starts that are in the evaluation set", f"{d.num_shared}", "0"))
    for row in d.dimensions:
        value = f"range {100 * row.range_fraction:.0f} %, std {100 * row.std_ratio:.0f} %, KS p {row.ks_p:.2g}"
        table.append((row.name, value, "100 %, 100 %, not tiny"))
    nearest = {
        "mean": (d.nearest_mean, d.nearest_ratio),
        "95th percentile": (d.nearest_p95, d.nearest_p95_ratio),
        "most": (d.nearest_max, d.nearest_max_ratio),
    }
    for name, (distance, ratio) in nearest.items():
        shown = f"{distance:.3f} box widths, {ratio:.2f} x that of random starts"
        table.append((f"distance to the nearest demonstration, {name}", shown, "about 1 x"))
    table += [
        ("fresh starts beyond the random 99th percentile", f"{100 * d.beyond_p99:.0f} %", "about 1 %"),
        ("energy distance", f"{d.energy_distance:.4f} (p = {d.energy_p:.2g})", "p not tiny"),
    ]
    if d.correlated:
        pair = f"{d.correlation:.2f} ({' and '.join(d.correlated)})"
        constant = sum(row.range_fraction == 0 for row in d.dimensions)
        rank = f"{d.effective_rank:.1f}" if not constant else f"not told: {constant} of {len(d.dimensions)} do not vary"
        table.append(("effective rank", rank, f"{d.effective_rank_reference:.1f}"))
        table.append(("correlation furthest from the evaluation's", pair, "small"))
    return table


def quality_rows(quality: Quality) -> list[Row]:
    """Return how one source demonstrated: what, the value, and what is usual.

    Usual is what lies between the 10th and the 90th percentile of the 50 tasks' scripted experts, 12 demonstrations of
    each. It decides nothing: what is good depends on the task.
    """
    q = quality

    def percent(value: float) -> str:
        return f"{100 * value:.0f} %"

    return [
        ("distinct starts", f"{q.num_distinct} of {q.num}", "all"),
        ("steps", f"{q.steps:.0f} ({q.steps_least} to {q.steps_most})", "56 to 116"),
        (
            "straightness of the hand's way",
            "n/a" if q.path_efficiency is None else percent(q.path_efficiency),
            "20 to 70 %; 100 %: straight",
        ),
        ("idle steps", percent(q.idle_fraction), "0 %"),
        ("steps with a clipped action", percent(q.clipped_fraction), "32 to 100 %"),
        ("jerk of the hand", "n/a" if q.jerk is None else f"{q.jerk:.0f} m/s³", "220 to 720 m/s³"),
        ("gripper switches", f"{q.gripper_switches:.0f}", "0 or 1"),
        ("action sequences that repeat another", percent(q.duplicate_trajectories), "0 %"),
        (
            "variance of actions among similar states",
            "n/a" if q.action_variance is None else percent(q.action_variance),
            "0 to 25 % of all",
        ),
    ]


def terminal_table(diversity: Diversity) -> Table:
    """Return the report as a table."""
    title = f"Starts of {diversity.num} demonstrations of {diversity.task}, against {diversity.against}"
    table = Table(title=title, title_justify="left")
    for column in ("", "measured", "expected"):
        table.add_column(column)
    for row in rows(diversity):
        table.add_row(*row)
    for quality in diversity.quality:
        table.add_section()
        table.add_row(Text(f"demonstrated by {quality.source}", style="bold"), "", "usual")
        for row in quality_rows(quality):
            table.add_row(*row)
    return table


def write_report(
    store: EpisodeStore, diversity: Diversity, out: Path, *, against: np.ndarray | None = None,
    predictors: Sequence[tuple[str, str, str]] = (),
) -> Path:  # fmt: skip
    """Write ``diversity.json`` and ``report.html`` into ``out``, and return the page's path.

    ``predictors`` are rows of what was tried with the data: what, the value, and what it should be.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diversity.json", diversity.to_dict())
    task, starts = get_task(store.info.task), store.rand_vecs
    failed = stack([attempt.start for attempt in store.attempts() if not attempt.kept])
    maps = [coverage_figure(task, starts, failed, against=against, pairs=[pair]) for pair in panels(task)]
    distributions = [distribution_figure(task, int(dim), starts, against) for dim in task.informative]
    page = out / "report.html"
    write_page(
        page,
        "dataset.html.j2",
        {
            "title": f"{store.path.name}: {store.num_episodes} demonstrations of {store.info.task}",
            "diversity": diversity,
            "rows": rows(diversity),
            "qualities": [(quality.source, quality_rows(quality)) for quality in diversity.quality],
            "maps": [figure_uri(figure) for figure in maps],
            "distributions": [figure_uri(figure) for figure in distributions],
            "growth": figure_uri(growth_figure(diversity.growth, diversity.num)) if diversity.growth else None,
            "predictors": predictors,
            "info": store.info,
            "fingerprint": store.fingerprint or "unfinished",
        },
    )
    return page


def write_overview(measured: Sequence[tuple[str, Diversity]], title: str, out: Path) -> Path:
    """Write the page of several datasets, each with its report in a folder of its name; return the page's path."""
    write_json(out / "diversity.json", {name: diversity.to_dict() for name, diversity in measured})
    write_page(out / "report.html", "datasets.html.j2", {"title": title, "measured": measured})
    return out / "report.html"
