"""The diversity report of a dataset: a table for the terminal, JSON for programs, a page for people."""

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
from act_kit.reports.coverage import coverage_figure, distribution_figure, panels, scaling_figure
from act_kit.sim.initial_states import stack
from act_kit.sim.tasks import get_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}

Row = tuple[str, str, str]

_FAILED, _LEAKED = "attempts not kept", "validation episodes that training has seen"
"""What is not known of data that were not collected here."""


def rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return what is measured of the starts, or of first observations: what, the value, and what it should be."""
    return [*_rows(measured), *soundness_rows(measured)]


def soundness_rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return what replaying the demonstrations and asking the expert showed: what, the value, and what it should be."""
    s = measured.soundness
    if s is None:
        return []
    sound = f"{s.num_sound} of {max(s.num_replayed, s.num_asked)}"
    sample = "" if s.num_replayed in (0, s.num) else f", evenly chosen from {s.num}"
    replayed = f"{s.num_replayed}{sample}" if s.num_replayed else f"none. {s.not_replayed}".strip()
    asked = f"{s.num_asked} ({s.num_states} states)" if s.num_asked else f"none. {s.not_asked}".strip()
    return [
        ("demonstrations replayed", replayed, f"{s.num}"),
        ("demonstrations that the expert was asked about again", asked, "those it made or labelled"),
        ("of them sound", sound if s.num_replayed + s.num_asked else "n/a", "all"),
    ]


def _rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    if isinstance(measured, FirstObservations):
        of_init_states = _rows(measured.init_states) if measured.init_states else []
        return [*first_rows(measured), *(row for row in of_init_states if row[0] not in (_FAILED, _LEAKED))]
    d = measured
    table = [
        ("distinct starts", f"{d.num_distinct} of {d.num}", "all"),
        ("starts that repeat another", f"{100 * d.duplicate_fraction:.0f} %", "at most 2 %"),
        ("starts that nearly repeat another", f"{d.num_distinct - d.num_apart}", "few"),
        ("starts that the task never has", f"{d.num_outside}", "0"),
        (_FAILED, f"{d.num_failed} of {d.num_attempts}", "few; each leaves a hole"),
        (_LEAKED, f"{d.num_leaked} of {d.num_validation}", "0"),
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
    for hole in d.visible_holes:
        size = f"{100 * hole.share:.0f} % of the box" if hole.share else "none"
        table.append((f"smallest hole seen 8 times of 10, {hole.where}", size, "smaller ones may exist"))
    for share in d.sources if len(d.sources) > 1 else ():
        shown = f"{100 * share.nearest:.0f} % of fresh starts" if share.nearest is not None else "n/a"
        part = f"{100 * share.num / d.num:.0f} %, its part of the demonstrations"
        table.append((f"nearest to a demonstration by {share.source}", shown, part))
    return table


def first_rows(measured: FirstObservations) -> list[Row]:
    """Return what is measured of first observations."""
    m = measured
    frozen = f"{len(m.frozen)} of {m.state_dim}" + (f" (the first: {m.frozen[0]})" if m.frozen else "")
    return [
        ("numbers of a state and of an action", f"{m.state_dim}, {m.action_dim}", ""),
        ("distinct first states", f"{m.num_distinct_states} of {m.num_compared}", "all, or the pictures differ"),
        *(
            (f"distinct first pictures of {camera}", f"{num} of {m.num_compared}", "all, or the states differ")
            for camera, num in m.num_distinct_frames.items()
        ),
        ("numbers that move, but always begin the same", frozen, "those of the robot's resting pose"),
        ("demonstrations that repeat another to the bit", f"{100 * m.duplicate_trajectories:.0f} %", "0 %"),
    ]


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


def terminal_table(measured: DiversityReport | FirstObservations) -> Table:
    """Return the report as a table."""
    title = f"{measured.num} demonstrations of {measured.task}"
    title = f"Starts of {title}, against {measured.against}" if isinstance(measured, DiversityReport) else title
    table = Table(title=title, title_justify="left")
    for column in ("", "measured", "expected"):
        table.add_column(column)
    for row in rows(measured):
        table.add_row(*row)
    for source, of_source in source_rows(measured):
        table.add_section()
        table.add_row(Text(f"demonstrated by {source}", style="bold"), "", "usual")
        for row in of_source:
            table.add_row(*row)
    return table


def source_rows(diversity: DiversityReport | FirstObservations) -> list[tuple[str, list[Row]]]:
    """Return of each source how often it succeeded, and how it demonstrated; of first observations, nothing."""
    if isinstance(diversity, FirstObservations):
        return []
    succeeded = {share.source: f"{share.num_succeeded} of {share.num}" for share in diversity.sources}
    return [
        (quality.source, [("episodes that succeed", succeeded[quality.source], "all"), *quality_rows(quality)])
        for quality in diversity.quality
    ]


def write_report(
    store: EpisodeStore, measured: DiversityReport | FirstObservations, out: Path, *, against: np.ndarray | None = None,
    predictors: Sequence[tuple[str, str, str]] = (),
) -> Path:  # fmt: skip
    """Write ``diversity.json`` and ``report.html`` into ``out``, and return the page's path.

    ``predictors`` are rows of what was tried with the data: what, the value, and what it should be.
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
            for pair in panels(task)
        ]
        distributions = [distribution_figure(task, int(dim), init_states, against) for dim in task.informative]
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
            "colors": "each source in its colour" if len(set(store.sources)) > 1 else "blue",
            "maps": [figure_uri(figure) for figure in maps],
            "distributions": [figure_uri(figure) for figure in distributions],
            "scaling": figure_uri(scaling_figure(diversity.scaling, diversity.num))
            if diversity and diversity.scaling
            else None,
            "predictors": predictors,
            "info": store.info,
            "fingerprint": store.fingerprint or "unfinished",
        },
    )
    return page


def write_overview(measured: Sequence[tuple[str, DiversityReport | FirstObservations]], title: str, out: Path) -> Path:
    """Write the page of several datasets, each with its report in a folder of its name; return the page's path."""
    write_json(out / "diversity.json", {name: diversity.to_dict() for name, diversity in measured})
    of_init_states = {name: each if isinstance(each, DiversityReport) else each.init_states for name, each in measured}
    nearest = {name: f"{of.nearest_ratio:.2f}" if of else "n/a" for name, of in of_init_states.items()}
    write_page(out / "report.html", "datasets.html.j2", {"title": title, "measured": measured, "nearest": nearest})
    return out / "report.html"
