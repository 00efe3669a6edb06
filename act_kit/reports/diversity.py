"""The diversity report of a dataset as a terminal table, JSON and an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.first_observations import FirstObservations, known_init_states
from act_kit.diversity.integrity import Level
from act_kit.diversity.quality import Quality
from act_kit.diversity.result import DiversityReport
from act_kit.files import write_json
from act_kit.pages import figure_uri, write_page
from act_kit.reports.coverage import coverage_figure, distribution_figure, scaling_figure
from act_kit.sim.initial_states import stack
from act_kit.sim.tasks import get_task, map_planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}

Row = tuple[str, str, str]

_FAILED, _LEAKED = "failed attempts", "validation episodes that repeat a training episode"
"""Rows that are unknown for imported datasets."""


def rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return the rows of the report: name, measured value and expected value."""
    return [*_rows(measured), *soundness_rows(measured)]


def soundness_rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return the results of replaying the demonstrations and querying the expert: name, measured and expected value."""
    s = measured.soundness
    if s is None:
        return []
    sound = f"{s.num_sound} of {max(s.num_replayed, s.num_queried)}"
    sample = "" if s.num_replayed in (0, s.num) else f", evenly spaced, of {s.num}"
    replayed = f"{s.num_replayed}{sample}" if s.num_replayed else f"none. {s.not_replayed}".strip()
    queried = f"{s.num_queried} ({s.num_states} states)" if s.num_queried else f"none. {s.not_queried}".strip()
    return [
        ("demonstrations replayed", replayed, f"{s.num}"),
        ("demonstrations checked with the expert", queried, "those it demonstrated or labeled"),
        ("sound demonstrations", sound if s.num_replayed + s.num_queried else "n/a", "all"),
    ]


def _rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    if isinstance(measured, FirstObservations):
        init_state_rows = _rows(measured.init_states) if measured.init_states else []
        return [*first_rows(measured), *(row for row in init_state_rows if row[0] not in (_FAILED, _LEAKED))]
    d = measured
    table = [
        ("distinct initial states", f"{d.num_distinct} of {d.num}", "all"),
        ("duplicate initial states", f"{100 * d.duplicate_fraction:.0f} %", "at most 2 %"),
        ("near copies of other initial states", f"{d.num_distinct - d.num_apart}", "few"),
        ("initial states out of distribution", f"{d.num_outside}", "0"),
        (_FAILED, f"{d.num_failed} of {d.num_attempts}", "few; each leaves a hole"),
        (_LEAKED, f"{d.num_leaked} of {d.num_validation}", "0"),
    ]
    if "evaluation set" in d.against:
        table.append(("initial states in the evaluation set", f"{d.num_shared}", "0"))
    for row in d.dimensions:
        value = f"range {100 * row.range_fraction:.0f} %, std {100 * row.std_ratio:.0f} %, KS p {row.ks_p:.2g}"
        table.append((row.name, value, "100 %, 100 %, not small"))
    nearest = {
        "mean": (d.nearest_mean, d.nearest_ratio),
        "95th percentile": (d.nearest_p95, d.nearest_p95_ratio),
        "maximum": (d.nearest_max, d.nearest_max_ratio),
    }
    for name, (distance, ratio) in nearest.items():
        shown = f"{distance:.3f} box widths, {ratio:.2f} x random"
        table.append((f"distance to the nearest demonstration, {name}", shown, "about 1 x"))
    table += [
        ("new initial states beyond the 99th percentile of random", f"{100 * d.beyond_p99:.0f} %", "about 1 %"),
        ("energy distance", f"{d.energy_distance:.4f} (p = {d.energy_p:.2g})", "p not small"),
    ]
    if d.correlated:
        pair = f"{d.correlation:.2f} ({' and '.join(d.correlated)})"
        constant = sum(row.range_fraction == 0 for row in d.dimensions)
        rank = f"{d.effective_rank:.1f}"
        if constant:
            rank = f"n/a: {constant} of {len(d.dimensions)} dimensions are constant"
        table.append(("effective rank", rank, f"{d.effective_rank_reference:.1f}"))
        table.append(("largest difference of a correlation from the evaluation", pair, "small"))
    for hole in d.visible_holes:
        size = f"{100 * hole.share:.0f} % of the box" if hole.share else "none"
        table.append((f"smallest hole detected with 80 % probability, {hole.where}", size, "smaller ones may exist"))
    for share in d.sources if len(d.sources) > 1 else ():
        shown = f"{100 * share.nearest:.0f} % of new initial states" if share.nearest is not None else "n/a"
        own_share = f"{100 * share.num / d.num:.0f} %, its share of the demonstrations"
        table.append((f"nearest to a demonstration by {share.source}", shown, own_share))
    return table


def first_rows(measured: FirstObservations) -> list[Row]:
    """Return the rows of first observations: name, measured and expected value."""
    m = measured
    frozen = f"{len(m.frozen)} of {m.state_dim}" + (f" (first: {m.frozen[0]})" if m.frozen else "")
    return [
        ("dimensions of a state and of an action", f"{m.state_dim}, {m.action_dim}", ""),
        ("distinct first states", f"{m.num_distinct_states} of {m.num_compared}", "all, unless the images differ"),
        *(
            (f"distinct first images of {camera}", f"{num} of {m.num_compared}", "all, unless the states differ")
            for camera, num in m.num_distinct_frames.items()
        ),
        ("varying dimensions that are constant in the first states", frozen, "those of the robot's initial pose"),
        ("bit-exact copies of other demonstrations", f"{100 * m.duplicate_trajectories:.0f} %", "0 %"),
    ]


def quality_rows(quality: Quality) -> list[Row]:
    """Return the quality of one source's demonstrations: name, measured and typical value.

    Typical values lie between the 10th and the 90th percentile of the 50 tasks' scripted experts, 12 demonstrations of
    each. They do not affect the verdict: good values depend on the task.
    """
    q = quality

    def percent(value: float) -> str:
        return f"{100 * value:.0f} %"

    return [
        ("distinct initial states", f"{q.num_distinct} of {q.num}", "all"),
        ("steps", f"{q.steps:.0f} ({q.min_steps} to {q.max_steps})", "56 to 116"),
        (
            "straightness of the hand path",
            "n/a" if q.path_efficiency is None else percent(q.path_efficiency),
            "20 to 70 %; straight: 100 %",
        ),
        ("idle steps", percent(q.idle_fraction), "0 %"),
        ("steps with a clipped action", percent(q.clipped_fraction), "32 to 100 %"),
        ("jerk of the hand", "n/a" if q.jerk is None else f"{q.jerk:.0f} m/s³", "220 to 720 m/s³"),
        ("gripper switches", f"{q.gripper_switches:.0f}", "0 or 1"),
        ("duplicate action sequences", percent(q.duplicate_trajectories), "0 %"),
        (
            "action variance in similar states",
            "n/a" if q.action_variance is None else percent(q.action_variance),
            "0 to 25 % of the total",
        ),
    ]


def terminal_table(measured: DiversityReport | FirstObservations) -> Table:
    """Return the report as a terminal table."""
    title = f"{measured.num} demonstrations of {measured.task}"
    if isinstance(measured, DiversityReport):
        title = f"Initial states of {title}, compared with {measured.against}"
    table = Table(title=title, title_justify="left")
    for column in ("", "measured", "expected"):
        table.add_column(column)
    for row in rows(measured):
        table.add_row(*row)
    for source, quality in source_rows(measured):
        table.add_section()
        table.add_row(Text(f"demonstrations by {source}", style="bold"), "", "typical")
        for row in quality:
            table.add_row(*row)
    return table


def source_rows(diversity: DiversityReport | FirstObservations) -> list[tuple[str, list[Row]]]:
    """Return each source with the rows of its success and quality; empty for first observations."""
    if isinstance(diversity, FirstObservations):
        return []
    succeeded = {share.source: f"{share.num_succeeded} of {share.num}" for share in diversity.sources}
    return [
        (quality.source, [("successful episodes", succeeded[quality.source], "all"), *quality_rows(quality)])
        for quality in diversity.quality
    ]


def write_report(
    store: EpisodeStore,
    measured: DiversityReport | FirstObservations,
    out: Path,
    *,
    against: np.ndarray | None = None,
    predictors: Sequence[tuple[str, str, str]] = (),
) -> Path:
    """Write ``diversity.json`` and ``report.html`` to ``out`` and return the path of the page.

    ``predictors`` are rows of experiments with the data: name, measured and expected value.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diversity.json", measured.to_dict())
    diversity = measured if isinstance(measured, DiversityReport) else None
    init_states = known_init_states(store)
    maps: list[Figure] = []
    distributions: list[Figure] = []
    if init_states is not None:
        task = get_task(store.info.task)
        failed = stack([attempt.init_state for attempt in store.attempts() if not attempt.kept])
        sources = store.sources if len(set(store.sources)) > 1 else ()
        maps = [
            coverage_figure(task, init_states, failed, against=against, pairs=[pair], sources=sources)
            for pair in map_planes(task)
        ]
        distributions = [distribution_figure(task, int(dim), init_states, against) for dim in task.informative]
    scaling = None
    if diversity and diversity.scaling:
        scaling = figure_uri(scaling_figure(diversity.scaling, diversity.num))
    page = out / "report.html"
    write_page(
        page,
        "dataset.html.j2",
        {
            "title": f"{store.path.name}: {store.num_episodes} demonstrations of {store.info.task}",
            "diversity": measured,
            "more": diversity.more if diversity else "",
            "rows": rows(measured),
            "qualities": source_rows(measured),
            "colors": "one color per source" if len(set(store.sources)) > 1 else "blue",
            "maps": [figure_uri(figure) for figure in maps],
            "distributions": [figure_uri(figure) for figure in distributions],
            "scaling": scaling,
            "predictors": predictors,
            "info": store.info,
            "fingerprint": store.fingerprint or "unfinished",
        },
    )
    return page


def write_overview(measured: Sequence[tuple[str, DiversityReport | FirstObservations]], title: str, out: Path) -> Path:
    """Write the overview page of several datasets, whose reports are in folders of their names; return its path."""
    write_json(out / "diversity.json", {name: diversity.to_dict() for name, diversity in measured})
    nearest = {}
    for name, report in measured:
        coverage = report if isinstance(report, DiversityReport) else report.init_states
        nearest[name] = f"{coverage.nearest_ratio:.2f}" if coverage else "n/a"
    write_page(out / "report.html", "datasets.html.j2", {"title": title, "measured": measured, "nearest": nearest})
    return out / "report.html"
