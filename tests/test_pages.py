"""Tests of the pages in a real browser: no network, no errors, rows sort and hide, videos play."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from act_kit.config.evaluation import EvalConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import measure_diversity
from act_kit.eval.results import Evaluation
from act_kit.eval.sweep import SweepRow
from act_kit.monitoring.result import MonitoredEpisode
from act_kit.parallel import LocalExecutor
from act_kit.reports.dataset import dataset_report, datasets_report
from act_kit.reports.demo import Side, write_demo
from act_kit.reports.evaluation import write_results
from act_kit.reports.monitor import monitor_report
from act_kit.reports.overview import write_overview
from act_kit.reports.video import record, video_path
from act_kit.sim.render import Gl, RenderSettings
from act_kit.statistics import Rate
from tests.conftest import Open
from tests.eval.test_evaluate import evaluation_of
from tests.monitoring.test_monitor import result_of

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


def column(page: Page, name: str) -> list[str]:
    """Return the visible cells under a header, from top to bottom."""
    rows = """([name]) => {
        const table = document.getElementById("episodes");
        const index = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.split(" (")[0] === name);
        const rows = [...table.tBodies[0].rows].filter(row => row.checkVisibility());
        return rows.map(row => row.cells[index].lastChild?.textContent ?? "");
    }"""
    cells: list[str] = page.evaluate(rows, [name])
    return cells


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=re.compile(f"^{name}")).click()


@pytest.fixture
def evaluation() -> Evaluation:
    """Return twelve episodes, seven of them successful, whose largest z have one or two digits."""
    evaluation = evaluation_of("reach-v3", 7, 12)
    episodes = [
        replace(episode, largest_z=(7 * i) % 12 + 0.5, distance_to_nearest_demo=0.1 * i)
        for i, episode in enumerate(evaluation.episodes)
    ]
    return replace(evaluation, episodes=episodes)


def test_rows_of_an_evaluation_sort_and_hide(show: Open, evaluation: Evaluation, tmp_path: Path) -> None:
    rows = [SweepRow(chunking="4 actions a query", rate=evaluation.success)]
    rows.append(SweepRow(chunking="1 action a query", rate=Rate(9, 12), gained=3, lost=1, p=0.625))
    page = show(write_results(evaluation, tmp_path, sweep=rows))
    assert column(page, "episode") == [str(i) for i in range(12)]
    press(page, "largest z")
    zs = [float(z) for z in column(page, "largest z")]
    assert zs == sorted(zs), "sorted as numbers: 10.5 after 9.5"
    press(page, "largest z")
    assert [float(z) for z in column(page, "largest z")] == zs[::-1]
    press(page, "success step")
    assert column(page, "success step") == ["1"] * 7 + [""] * 5, "empty cells last"
    press(page, "failures 5")
    assert column(page, "result") == ["failure"] * 5
    press(page, "frozen 5")
    assert set(column(page, "failure mode")) == {"frozen"}
    press(page, "successes 7")
    assert column(page, "result") == ["success"] * 7
    press(page, "episode")
    press(page, "all 12")
    assert column(page, "episode") == [str(i) for i in range(12)]
    assert "Not a result" in page.inner_text("body")
    assert page.locator("#sweep tr").count() == 3


@pytest.mark.gl
def test_videos_have_posters_and_play(show: Open, gl: Gl, evaluation: Evaluation, tmp_path: Path) -> None:
    videos = {i: video_path(tmp_path, i, evaluation.outcomes[i]) for i in (7, 0)}
    with LocalExecutor(1, gl.environment) as executor:
        outcomes = {path: evaluation.outcomes[i] for i, path in videos.items()}
        record(executor, outcomes, "corner4", RenderSettings(height_px=64, width_px=64), 20)
    written = write_results(evaluation, tmp_path, videos)
    content = written.read_bytes()
    assert write_results(evaluation, tmp_path, videos).read_bytes() == content, "the same input, the same page"
    page = show(written)
    press(page, "with video 2")
    assert column(page, "episode") == ["0", "7"]
    page.get_by_role("link", name="video").first.click()
    assert page.url.endswith("#video-0")
    assert page.locator("figcaption").all_inner_texts()[-2:] == [
        "● success · episode 0: at step 1",
        "✕ failure · episode 7: frozen",
    ]
    for video in page.locator("video").all():
        size = """video => new Promise(resolve => {
            const image = new Image();
            image.onload = () => resolve(image.naturalWidth);
            image.src = video.poster;
        })"""
        assert video.evaluate(size) == 64
        video.scroll_into_view_if_needed()
        video.evaluate("video => video.play()")
        page.wait_for_function("video => video.currentTime > 0.2", arg=video.element_handle())


def test_overview_links_to_its_tasks(show: Open, tmp_path: Path) -> None:
    evaluations = [evaluation_of("reach-v3", 9, 10), evaluation_of("push-v3", 10, 10)]
    for each in evaluations:
        write_results(each, tmp_path / each.task)
    page = show(write_overview(evaluations, tmp_path))
    first = page.locator("table.sortable tbody tr >> nth=0")
    assert "push" not in first.inner_text()
    press(page, "success")
    press(page, "success")
    assert "push-v3" in first.inner_text(), "10 of 10 before 9 of 10"
    first.get_by_role("link").click()
    assert page.title().startswith("push-v3: success 10/10")


def test_dataset_reports_open(show: Open, reach_store: EpisodeStore, tmp_path: Path) -> None:
    diversity = measure_diversity(reach_store)
    report = dataset_report(reach_store, diversity)
    page = show(report.write(tmp_path / "reach" / "report.html", tmp_path / "reach" / "diversity.json"))
    assert "10 demonstrations of reach-v3" in page.title()
    assert json.loads((tmp_path / "reach" / "diversity.json").read_text())["level"] == diversity.level
    page = show(datasets_report([("reach", diversity)], tmp_path).write(tmp_path / "report.html"))
    page.get_by_role("link", name="reach").click()
    assert "10 demonstrations of reach-v3" in page.title()


@pytest.mark.gl
def test_alarms_of_a_monitor_sort_and_hide(show: Open, tmp_path: Path) -> None:
    successes = [MonitoredEpisode(distances=np.full(40 + i, 0.5), success=True, alarm_step=None) for i in range(9)]
    failures = [MonitoredEpisode(distances=np.linspace(0, 9, 90), success=False, alarm_step=10 + i) for i in range(6)]
    result = result_of(successes, failures)
    page = show(monitor_report(result).write(tmp_path / "report.html"))
    assert page.locator("svg").count() == 2 + 3
    page.get_by_role("button", name="alarm").click()
    assert column(page, "alarm")[:2] == ["step 10", "step 11"]
    press(page, "failures")
    assert column(page, "alarm") == [f"step {10 + i}" for i in range(6)]


def test_the_demo_plays_a_failure_and_a_success_in_step(
    show: Open, gl: Gl, reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(tiny_run)
    failed, succeeded = (evaluation_of("reach-v3", num, 3) for num in (0, 3))
    side = Side(
        name="one initial state",
        folder=tmp_path,
        store=reach_store,
        diversity=measure_diversity(reach_store),
        evaluation=failed,
    )
    write_demo([side, replace(side, name="randomized", evaluation=succeeded)], tmp_path, EvalConfig(video_size_px=64))
    assert (tmp_path / "maps.png").stat().st_size
    page = show(tmp_path / "report.html")
    assert "two datasets" in page.title()
    first, second = page.locator(".synchronized video").all()
    first.focus()
    page.keyboard.press("Space")
    page.wait_for_function(
        "videos => videos.every(video => video.currentTime > 0.2)",
        arg=[first.element_handle(), second.element_handle()],
    )
    second.evaluate("video => video.pause()")
    page.wait_for_function("video => video.paused", arg=first.element_handle())
    first.evaluate("video => { video.currentTime = 0.1 }")
    page.wait_for_function("video => video.currentTime === 0.1", arg=second.element_handle())


def test_tables_are_sorted_by_keyboard(show: Open, evaluation: Evaluation, tmp_path: Path) -> None:
    page = show(write_results(evaluation, tmp_path))
    page.locator("#episodes th button").first.focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert page.locator("#episodes th").first.get_attribute("aria-sort") == order
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#episodes th").nth(1).get_attribute("aria-sort") == "ascending"
