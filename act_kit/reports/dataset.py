"""The report of a dataset: the diversity of its initial states and the soundness of its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.first_observations import FirstObservations, known_init_states
from act_kit.diversity.quality import Quality
from act_kit.diversity.result import DiversityReport
from act_kit.reports.figures import coverage_figures, distribution_figure, scaling_figure
from act_kit.reports.report import Cell, Chart, Column, Headline, Report, Section, Table, text_columns
from act_kit.sim.tasks import get_task
from act_kit.statistics import percent
from act_kit.text import name_values

Row = tuple[str, str, str]
"""Name, measured value and expected value."""

_FAILED, _LEAKED = "failed attempts", "validation episodes that repeat a training episode"
"""Rows that are unknown for imported datasets."""


def dataset_report(
    store: EpisodeStore,
    measured: DiversityReport | FirstObservations,
    *,
    against: np.ndarray | None = None,
    predictors: Sequence[Row] = (),
) -> Report:
    """Return the report of a dataset; its data are the fields of ``measured``.

    ``against`` are the evaluated initial states (M, D) if they are not new ones. ``predictors`` are rows of experiments
    with the data.
    """
    diversity = measured if isinstance(measured, DiversityReport) else None
    charts = _charts(store, measured, against)
    sections = [Section(title="Coverage of the initial states", charts=charts)] if charts else []
    if predictors:
        table = Table(columns=text_columns("", "measured", "expected"), rows=predictors)
        sections.append(Section(title="Expected success of a policy", table=table, in_terminal=True))
    title = f"Initial states, compared with {diversity.against}" if diversity else "First observations"
    table = Table(columns=text_columns("", "measured", "expected"), rows=rows(measured))
    sections.append(Section(title=title, table=table, in_terminal=True))
    for source, quality in source_rows(measured):
        title = f"Quality of the demonstrations by {source}"
        table = Table(columns=text_columns("", "measured", "typical"), rows=quality)
        explanation = (
            "Medians over the episodes. Typical: 10th to 90th percentile of the scripted experts of Meta-World's 50 "
            "tasks. Good values depend on the task, so they do not affect the verdict."
        )
        sections.append(Section(title=title, table=table, explanation=explanation, in_terminal=True))
    return Report(
        kind="Dataset",
        title=f"{store.path.name}: {store.num_episodes} demonstrations of {store.info.task}",
        verdicts=[(measured.level, measured.verdict)],
        headlines=_headlines(measured),
        warnings=[f"Also: {finding.text}" for finding in measured.findings if finding.level != measured.level],
        notes=[*measured.notes, *([diversity.more] if diversity and diversity.more else [])],
        sections=sections,
        provenance=[
            ("command", store.info.command),
            ("fingerprint", (store.fingerprint or "unfinished")[:16]),
            ("versions", name_values(store.info.versions)),
            ("episodes", f"{store.info.horizon} steps at {store.info.control_hz} Hz"),
        ],
        data=measured.to_dict(),
    )


def _headlines(measured: DiversityReport | FirstObservations) -> list[Headline]:
    if isinstance(measured, FirstObservations):
        distinct = f"of {measured.num_compared} demonstrations"
        return [Headline(label="distinct first states", value=f"{measured.num_distinct_states:,}", detail=distinct)]
    d = measured
    return [
        Headline(label="distinct initial states", value=f"{d.num_distinct:,}", detail=f"of {d.num:,} demonstrations"),
        Headline(
            label="distance to the nearest demonstration",
            value=f"{d.nearest_ratio:.2f} ×",
            detail=f"that of random initial states; mean {d.nearest_mean:.3f} box widths",
        ),
        Headline(label="duplicate initial states", value=f"{percent(d.duplicate_fraction)} %", detail="at most 2 %"),
        Headline(label="failed attempts", value=f"{d.num_failed:,}", detail=f"of {d.num_attempts:,}"),
    ]


def _charts(
    store: EpisodeStore, measured: DiversityReport | FirstObservations, against: np.ndarray | None
) -> list[Chart]:
    """Return the maps, the distributions and the benefit of more demonstrations."""
    charts = []
    init_states = known_init_states(store)
    if init_states is not None:
        task = get_task(store.info.task)
        sources = store.sources if len(set(store.sources)) > 1 else ()
        colors = "one color per source" if sources else "blue"
        caption = f"Demonstrated initial states ({colors}) over the evaluated ones (gray)"
        for figure in coverage_figures(task, init_states, store.failed_rand_vecs, against=against, sources=sources):
            charts.append(Chart(figure=figure, label=f"Map: {caption}", caption=caption))
        for dim in map(int, task.informative):
            caption = f"Distribution of {task.dim_name(dim)}"
            charts.append(
                Chart(figure=distribution_figure(task, dim, init_states, against), label=caption, caption=caption)
            )
    if isinstance(measured, DiversityReport) and measured.scaling:
        caption = "Expected benefit of more demonstrations"
        label = "Distance to the nearest demonstration over the number of demonstrations"
        charts.append(Chart(figure=scaling_figure(measured.scaling, measured.num), label=label, caption=caption))
    return charts


def rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return the rows of the report: initial states or first observations, then the soundness of the data."""
    if isinstance(measured, DiversityReport):
        return [*_diversity_rows(measured), *_import_rows(measured), *_soundness_rows(measured)]
    init_state_rows = _diversity_rows(measured.init_states) if measured.init_states else []
    known = [row for row in init_state_rows if row[0] not in (_FAILED, _LEAKED)]
    return [*_first_rows(measured), *known, *_import_rows(measured), *_soundness_rows(measured)]


def _import_rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return the number of actions that were out of range before they were imported."""
    if measured.num_clipped is None:
        return []
    clipped = f"{measured.num_clipped}, in {measured.num_clipped_episodes} of {measured.num} demonstrations"
    return [("actions outside [-1, 1], clipped at the import", clipped, "0")]


def _soundness_rows(measured: DiversityReport | FirstObservations) -> list[Row]:
    """Return the results of replaying the demonstrations and querying the expert."""
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


def _diversity_rows(d: DiversityReport) -> list[Row]:
    table = [
        ("distinct initial states", f"{d.num_distinct} of {d.num}", "all"),
        ("duplicate initial states", f"{percent(d.duplicate_fraction)} %", "at most 2 %"),
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
    for name, distance, ratio in (
        ("mean", d.nearest_mean, d.nearest_ratio),
        ("95th percentile", d.nearest_p95, d.nearest_p95_ratio),
        ("maximum", d.nearest_max, d.nearest_max_ratio),
    ):
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


def _first_rows(m: FirstObservations) -> list[Row]:
    frozen = f"{len(m.frozen)} of {m.state_dim}" + (f" (first: {m.frozen[0]})" if m.frozen else "")
    table = [
        ("dimensions of a state and of an action", f"{m.state_dim}, {m.action_dim}", ""),
        ("distinct first states", f"{m.num_distinct_states} of {m.num_compared}", "all, unless the images differ"),
    ]
    for camera, num in m.num_distinct_frames.items():
        name = f"distinct first images of {camera}"
        table.append((name, f"{num} of {m.num_compared}", "all, unless the states differ"))
    table += [
        ("varying dimensions that are constant in the first states", frozen, "those of the robot's initial pose"),
        ("bit-exact copies of other demonstrations", f"{percent(m.duplicate_trajectories)} %", "0 %"),
    ]
    return table


def _quality_rows(q: Quality) -> list[Row]:
    """Return the quality of one source's demonstrations, with typical instead of expected values.

    Typical values lie between the 10th and the 90th percentile of the 50 tasks' scripted experts, 12 demonstrations of
    each. They do not affect the verdict: good values depend on the task.
    """

    def shown(value: float | None) -> str:
        return "n/a" if value is None else f"{percent(value)} %"

    return [
        ("distinct initial states", f"{q.num_distinct} of {q.num}", "all"),
        ("steps", f"{q.steps:.0f} ({q.min_steps} to {q.max_steps})", "56 to 116"),
        ("straightness of the hand path", shown(q.path_efficiency), "20 to 70 %; straight: 100 %"),
        ("idle steps", shown(q.idle_fraction), "0 %"),
        ("steps with a clipped action", shown(q.clipped_fraction), "32 to 100 %"),
        ("jerk of the hand", "n/a" if q.jerk is None else f"{q.jerk:.0f} m/s³", "220 to 720 m/s³"),
        ("gripper switches", f"{q.gripper_switches:.0f}", "0 or 1"),
        ("duplicate action sequences", shown(q.duplicate_trajectories), "0 %"),
        ("action variance in similar states", shown(q.action_variance), "0 to 25 % of the total"),
    ]


def source_rows(measured: DiversityReport | FirstObservations) -> list[tuple[str, list[Row]]]:
    """Return each source with the rows of its success and quality; empty for first observations."""
    if isinstance(measured, FirstObservations):
        return []
    succeeded = {share.source: f"{share.num_succeeded} of {share.num}" for share in measured.sources}
    table = []
    for quality in measured.quality:
        first = ("successful episodes", succeeded[quality.source], "all")
        table.append((quality.source, [first, *_quality_rows(quality)]))
    return table


def datasets_report(measured: Sequence[tuple[str, DiversityReport | FirstObservations]], folder: Path) -> Report:
    """Return the overview of several datasets in ``folder``; their own reports are in folders of their names."""
    rows = []
    num, num_failed, data = 0, 0, {}
    for name, report in measured:
        num += report.num
        num_failed += report.level == "FAIL"
        data[name] = report.to_dict()
        coverage = report if isinstance(report, DiversityReport) else report.init_states
        findings = " ".join(finding.text for finding in report.findings)
        page = Cell(text=name, href=f"{quote(name)}/report.html")
        level = Cell(text=report.level, level=report.level)
        distinct = f"{report.num_distinct} of {report.num}"
        rows.append((page, report.task, level, distinct, coverage and coverage.nearest_ratio, findings))
    columns = [
        *text_columns("dataset", "task", "verdict", "distinct initial states"),
        Column("nearest-demonstration distance", "× random", 2),
        Column("findings"),
    ]
    return Report(
        kind="Datasets",
        title=f"{folder}: {len(measured)} datasets",
        headlines=[
            Headline(label="datasets with the verdict FAIL", value=f"{num_failed} of {len(measured)}"),
            Headline(label="demonstrations", value=f"{num:,}"),
        ],
        sections=[Section(title="Diversity of the datasets", table=Table(columns=columns, rows=rows))],
        data=data,
    )
