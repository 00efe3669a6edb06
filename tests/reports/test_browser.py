"""The dataset browser page, in a real browser: points, keys and video select the same episode and step."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from playwright.sync_api import Page

from act_kit.datasets.episode_table import episode_table, select_episodes
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.reports.browser import make_videos, write_view
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import Gl, RenderSettings
from tests.conftest import ONE_THREAD, Open, act

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


@pytest.fixture(scope="module")
def mixed(push_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Four demonstrations from two sources; the second failed."""
    recordings = []
    for i, recording in enumerate(push_store.iter_episodes()):
        steps: dict[str, Any] = {**recording.steps, "success": recording.steps["success"] & (i != 1)}
        recordings.append(replace(recording, source=["scripted", "teleop:<ann>"][i % 2], **steps))
    return write_dataset(
        tmp_path_factory.mktemp("mixed") / "data", push_store.info, recordings, attempts=push_store.attempts()
    )


def chosen(page: Page) -> int:
    """Return the selected episode, the same in the list, the maps and the address."""
    (row,) = page.locator("#episodes tr[aria-selected=true]").all()
    episode = row.get_attribute("data-episode")
    points = page.locator(".episode.chosen").all()
    assert {point.get_attribute("data-episode") for point in points} <= {episode}
    assert page.url.endswith(f"#{episode}")
    return int(episode or -1)


def cursor(page: Page) -> float:
    """Return the step of the cursor, the same in every plot."""
    (step,) = {line.get_attribute("x1") for line in page.locator(".cursor").all()}
    return float(step or "nan")


def visible(page: Page) -> list[int]:
    rows: Sequence[str | None] = [
        row.get_attribute("data-episode") for row in page.locator("#episodes tbody tr:visible").all()
    ]
    return [int(row or -1) for row in rows]


@pytest.mark.gl
def test_points_keys_and_video_select_the_same_step(show: Open, images_store: EpisodeStore, tmp_path: Path) -> None:
    assert make_videos(images_store, 4, tmp_path / "videos", num_workers=1) == ""
    page = show(write_view(images_store, 4, tmp_path))
    assert chosen(page) == 0
    page.locator("#maps figure").nth(1).locator(".episode[data-episode='2']").click(force=True)
    assert chosen(page) == 2
    for key, episode in (("ArrowLeft", 1), ("j", 2), ("ArrowRight", 3), ("ArrowRight", 3), ("k", 2)):
        page.keyboard.press(key)
        assert chosen(page) == episode
    assert page.locator("video").get_attribute("src") == "videos/0002.mp4"
    page.keyboard.press(".")
    assert cursor(page) == 4
    page.keyboard.press(" ")
    page.wait_for_function("() => video.currentTime > 0.3")
    page.keyboard.press(" ")
    assert page.evaluate("video.paused")
    assert cursor(page) == pytest.approx(80 * page.evaluate("video.currentTime"), abs=8)
    box = page.locator(".plot svg").first.bounding_box()
    assert box is not None
    page.locator(".plot svg").first.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    middle = (images_store.episode_lengths[2] - 1) / 2
    assert cursor(page) == pytest.approx(middle, abs=1)
    page.wait_for_function("() => !video.seeking")
    assert page.evaluate("video.currentTime") == pytest.approx(middle / 80, abs=0.06)
    assert page.evaluate("video.videoWidth") == 64, "both cameras, side by side"


@pytest.mark.gl
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves pipes open
def test_videos_are_rendered_if_there_are_no_images(gl: Gl, mixed: EpisodeStore, tmp_path: Path) -> None:
    tiny = RenderSettings(height_px=48, width_px=32)
    assert make_videos(mixed, 2, tmp_path, ["topview"], tiny, num_workers=1) == ""
    for episode in range(2):
        frames = iio.imread(tmp_path / f"{episode:04d}.mp4")
        assert frames.shape == (-(-mixed.episode_lengths[episode] // 4), 48, 32, 3)
        assert frames.std() > 10
    assert not (tmp_path / "0002.mp4").exists()


def test_the_page_selects_the_same_episodes_as_the_command(show: Open, mixed: EpisodeStore, tmp_path: Path) -> None:
    page = show(write_view(mixed, 4, tmp_path, no_video="No video was made."))
    columns = episode_table(mixed)
    middle = float(np.median(mixed.rand_vecs[:, 0]))
    expressions = [
        "succeeded",
        "not succeeded or steps > 1000",
        "source == 'scripted' and succeeded == True",
        f"object_x < {middle:.4f}",
        f"not object_x < {middle:.4f} and not False",
        "1 <= episode < 3",
        "episode in [0, 3]",
        "episode not in [0, 3,]",
        "'ann' in source",
        "success_step < 1e3",
        "success_step != 3",
        "(episode + 1) * 2 - 1 > 3 / 1",
        "abs(-episode) == 2",
        "-episode > -2 and random < 0.5",
    ]
    for where in expressions:
        page.locator("#filter").fill(where)
        assert visible(page) == select_episodes(columns, where).tolist(), where
        assert "wrong" not in (page.locator("#message").get_attribute("class") or "")
    command = page.locator("#message code").inner_text()
    assert command == f"act data filter {mixed.path} --where '{expressions[-1]}' --out …"
    page.get_by_role("button", name="failed 1").click()
    assert (visible(page), chosen(page)) == ([1], 1)
    for where in ("stepz < 3", "steps = 3", "steps", "(steps < 3", "steps <", "success_step"):
        page.locator("#filter").fill(where)
        assert page.locator("#message").get_attribute("class") == "wrong"
        assert visible(page) == [1], "an invalid filter does not change the list"
    page.get_by_role("button", name="all 4").click()
    page.get_by_role("button", name="steps").click()
    order = visible(page)
    assert order == sorted(range(4), key=lambda i: mixed.episode_lengths[i])
    page.locator("h1").click()
    page.evaluate(f"choose({order[1]})")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == order[2], "keys follow the order of the list"
    assert "teleop:<ann>" in page.locator("#key").inner_text()


def test_imported_data_has_a_page(show: Open, push_store: EpisodeStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = rng.normal(size=(30, 14))
    state[3, 2] = np.nan
    steps: dict[str, Any] = {"state": state, "action": state.astype(np.float32)}
    info = replace(push_store.info, task="aloha-cube", control_hz=50)
    store = write_dataset(tmp_path / "data", info, [Episode(init_state=None, source="ann", **steps)] * 2)
    reason = make_videos(store, 2, tmp_path / "videos", num_workers=1)
    assert "rendering needs the initial state and physics of each episode" in reason
    page = show(write_view(store, 2, tmp_path, no_video=reason))
    text = page.locator("main").inner_text()
    assert reason in text
    assert "there is no map" in text
    assert page.locator(".plot").count() == 4
    page.keyboard.press(" ")
    page.wait_for_function("() => now > 3")
    page.keyboard.press(" ")
    assert cursor(page) > 3, "playback works without a video"


def test_nothing_is_overwritten_without_a_flag(push_store: EpisodeStore, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(push_store.path, tmp_path / "data"))
    verb = ("data", "browse", dataset, "--workers", 1, "--episodes", 1)
    without_gl = {**ONE_THREAD, "MUJOCO_GL": "disable"}
    act(*verb, env=without_gl, check=0)
    page = tmp_path / "data-view" / "view.html"
    page.write_text(page.read_text() + "<!-- mine -->")
    assert "--overwrite replaces it" in act(*verb, env=without_gl, check=2).stderr
    assert "mine" in page.read_text()
    act(*verb, "--overwrite", env=without_gl, check=0)
    assert "mine" not in page.read_text()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "view.txt").write_text("mine")
    for out, message in ((tmp_path / "notes", "was not made by act"), (dataset, "overlap"), (tmp_path, "overlap")):
        assert message in act(*verb, "--overwrite", "--out", out, env=without_gl, check=2).stderr
    assert (tmp_path / "notes" / "view.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data-view", "notes"}
    assert EpisodeStore.open(dataset).fingerprint == push_store.fingerprint


def test_axes_have_names_units_and_limits(show: Open, push_store: EpisodeStore, tmp_path: Path) -> None:
    page = show(write_view(push_store, 4, tmp_path, no_video="No video was made."))
    hand = page.locator(".plot").first
    middles = push_store.steps("state")[:, :3]
    middles = (middles.min(axis=0) + middles.max(axis=0)) / 2
    expected = ", ".join(f"{line} {middle:.3f}" for line, middle in zip("xyz", middles, strict=True))
    assert f"axis zero: {expected}" in hand.inner_text()
    high, low = hand.locator(".limits span").all_inner_texts()
    assert (high[0], low[0]) == ("+", "-")
    assert hand.locator(".zero").count() == 1
    for unit in ("hand (m)", "object (m)", "gripper opening (0 closed, 1 open)", "action (-1 to 1)", "distance (m)"):
        assert unit in page.locator("#signals").inner_text()
    captions = page.locator("#maps figcaption").all_inner_texts()
    assert "→ object x: -0.1 to 0.1 m" in captions
    page.locator("#filter").fill("steps <")
    assert page.locator("#message").inner_text() == "something is missing after '<'"
    page.locator("#filter").fill("stepz < 3")
    assert "choose from: episode, steps" in page.locator("#message").inner_text()


def test_the_command_on_the_page_can_be_pasted_into_a_shell(show: Open, mixed: EpisodeStore, tmp_path: Path) -> None:
    page = show(write_view(mixed, 4, tmp_path, no_video="No video was made."))
    where = 'source != "it\'s $HOME `ls` \\\\" and random < 0.3333333'
    page.locator("#filter").fill(where)
    assert visible(page) == select_episodes(episode_table(mixed), where).tolist()
    words = shlex.split(page.locator("#message code").inner_text())
    assert words[words.index("--where") + 1] == where


def test_without_opengl_the_page_has_no_videos(push_store: EpisodeStore, tmp_path: Path) -> None:
    verb = ("data", "browse", push_store.path, "--out", tmp_path / "view", "--episodes", 2, "--workers", 1)
    done = act(*verb, env={**ONE_THREAD, "MUJOCO_GL": "disable"}, check=0)
    assert "There is no video" in done.stderr
    assert (tmp_path / "view" / "view.html").exists()
    assert not (tmp_path / "view" / "videos").exists()
