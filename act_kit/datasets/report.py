"""The diversity report of a dataset: a table for the terminal, JSON for programs, a page for people."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from act_kit.datasets.coverage import coverage_figure
from act_kit.datasets.diversity import Diversity, Level
from act_kit.datasets.store import EpisodeStore
from act_kit.files import write_json
from act_kit.pages import figure_uri, write_page
from act_kit.sim.starts import stack
from act_kit.sim.tasks import get_task

COLOURS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def rows(diversity: Diversity) -> list[tuple[str, str, str]]:
    """Return the report's rows: what, the value, and what it should be."""
    d = diversity
    table = [
        ("distinct starts", f"{d.num_distinct} of {d.num}", "all"),
        ("starts that repeat another", f"{100 * d.duplicate_fraction:.0f} %", "at most 2 %"),
        ("trajectories that repeat another", f"{100 * d.duplicate_trajectories:.0f} %", "0 %"),
        ("attempts that failed", f"{d.num_failed} of {d.num_attempts}", "few; each leaves a hole"),
    ]
    for row in d.dimensions:
        value = f"range {100 * row.range_fraction:.0f} %, std {100 * row.std_ratio:.0f} %, KS p {row.ks_p:.2g}"
        table.append((row.name, value, "100 %, 100 %, not tiny"))
    table += [
        (
            "nearest demonstration to a fresh start",
            f"mean {d.nearest_mean:.3f}, p95 {d.nearest_p95:.3f}, max {d.nearest_max:.3f} box widths",
            "",
        ),
        ("… relative to random starts", f"{d.nearest_ratio:.2f} x", "about 1"),
        ("fresh starts beyond the random 99th percentile", f"{100 * d.beyond_p99:.0f} %", "about 1 %"),
        ("energy distance", f"{d.energy_distance:.4f} (p = {d.energy_p:.2g})", "p not tiny"),
    ]
    if len(d.dimensions) > 1:
        table.append(("effective rank", f"{d.effective_rank:.1f}", f"{d.effective_rank_reference:.1f}"))
    return table


def terminal_table(diversity: Diversity) -> Table:
    """Return the report as a table."""
    table = Table(title=f"Starts of {diversity.num} demonstrations of {diversity.task}", title_justify="left")
    for column in ("", "measured", "expected"):
        table.add_column(column)
    for row in rows(diversity):
        table.add_row(*row)
    return table


def write_report(store: EpisodeStore, diversity: Diversity, out: Path) -> Path:
    """Write ``diversity.json`` and ``report.html`` into ``out``, and return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diversity.json", diversity.to_dict())
    failed = [attempt.start for attempt in store.attempts() if not attempt.kept]
    figure = coverage_figure(get_task(store.info.task), store.rand_vecs, stack(failed))
    page = out / "report.html"
    write_page(
        page,
        "dataset.html.j2",
        {
            "title": f"{store.path.name}: {store.num_episodes} demonstrations of {store.info.task}",
            "diversity": diversity,
            "rows": rows(diversity),
            "coverage": figure_uri(figure),
            "info": store.info,
            "fingerprint": store.fingerprint or "unfinished",
        },
    )
    return page
