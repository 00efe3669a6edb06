"""Teleoperation in a real browser: keys are pressed until the task succeeds, and a policy is trained on the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from act_kit.collection.teleop.images import ground_axes
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import measure_diversity
from act_kit.policies.policy import Policy
from act_kit.sim.render import Gl
from act_kit.training.trainer import Trainer
from tests.collection.teleop.serving import Served, go, measure, serve, wait_until
from tests.conftest import tiny_config
from tests.pages import check_page

pytestmark = [pytest.mark.e2e, pytest.mark.gl, pytest.mark.browser]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    context.on("console", lambda message: errors.append(message.text))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context
    context.close()
    assert [text for text in errors if "WebSocket" not in text] == [], "only dropped connections may be logged"


@pytest.fixture
def served(gl: Gl, tmp_path: Path) -> Iterator[Served]:
    with serve(gl, tmp_path / "data") as served:
        yield served


def open_page(context: BrowserContext, served: Served) -> Page:
    page = context.new_page()
    page.goto(served.url)
    wait_until(
        lambda: page.evaluate("shownAt.length"), "an image"
    )  # first: the page counts images of the last two seconds only
    wait_until(lambda: served.teleop.live, "the page to have control")
    check_page(page)
    return page


def test_reach_is_demonstrated_with_keys_and_a_policy_trains_on_it(
    context: BrowserContext, served: Served, tmp_path: Path
) -> None:
    page = open_page(context, served)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    for number in (1, 2):
        go(page, served, lambda state: state[36:39])
        page.get_by_text("Success. Enter keeps it").wait_for()
        page.keyboard.press("Enter")
        page.get_by_text(f"Episode {number} is kept: it is on disk.").wait_for()
        assert EpisodeStore.open(tmp_path / "data").num_episodes == number, "stored before the page shows it"
    page.get_by_text("All 2 demonstrations are on disk").wait_for()
    store = EpisodeStore.open(tmp_path / "data")
    assert measure_diversity(store).quality[0].source == "teleop:anna"
    (tmp_path / "run").mkdir()
    Trainer(tiny_config(), [store], tmp_path / "run", evaluator=None).train()
    assert Policy.load(tmp_path / "run").tasks == ("reach-v3",)


def test_push_is_demonstrated_with_keys(gl: Gl, context: BrowserContext, tmp_path: Path) -> None:
    with serve(gl, tmp_path / "data", task="push-v3", n=1) as served:
        page = open_page(context, served)
        go(page, served, lambda state: np.add(state[4:7], [0, 0, 0.15]), near_m=0.01)
        go(page, served, lambda state: np.add(state[4:7], [0, 0, 0.03]), near_m=0.01)
        page.keyboard.press("Space")
        wait_until(lambda: served.session.waits, "the gripper to close")
        go(page, served, lambda state: np.append(state[36:38], state[2]))
        page.get_by_text("Success. Enter keeps it").wait_for()
        page.keyboard.press("Enter")
        page.get_by_text("All 1 demonstrations are on disk").wait_for()
    (episode,) = EpisodeStore.open(tmp_path / "data").episodes()
    assert episode.success_step
    assert set(np.unique(episode.action[:, 3])) == {-1.0, 1.0}, "the gripper was closed"


def test_a_reloaded_page_continues_the_episode(context: BrowserContext, served: Served) -> None:
    page = open_page(context, served)
    page.keyboard.down("KeyW")
    wait_until(lambda: served.steps > 10, "some steps")
    page.reload()
    wait_until(lambda: served.teleop.live, "the page again")
    before = served.steps
    page.wait_for_timeout(1500)
    assert served.steps <= before + 1, "the key is no longer held"
    assert int(page.inner_text("#step")) == served.steps
    page.keyboard.up("KeyW")
    page.keyboard.down("KeyS")
    wait_until(lambda: served.steps > before + 5, "more steps")


def test_a_key_whose_release_is_not_reported_does_not_stick(context: BrowserContext, served: Served) -> None:
    """While Meta is held, macOS does not report the release of other keys."""
    page = open_page(context, served)
    page.keyboard.down("KeyW")
    wait_until(lambda: served.steps > 5, "some steps")
    page.keyboard.press("Meta")
    wait_until(lambda: served.session.waits, "the arm to stop")


def test_a_dropped_connection_is_restored(context: BrowserContext, served: Served) -> None:
    page = open_page(context, served)
    page.keyboard.down("KeyW")
    wait_until(lambda: served.steps > 5, "some steps")
    page.evaluate("socket.close()")
    wait_until(lambda: not served.teleop.live, "the drop to be noticed")
    before = served.steps
    page.get_by_text("No connection: the arm has stopped").wait_for()
    assert served.steps == before
    wait_until(lambda: served.steps > before + 5, "steps from the key that is still held, once the connection is back")


def test_the_arm_stops_without_focus(context: BrowserContext, served: Served) -> None:
    page = open_page(context, served)
    page.keyboard.down("KeyW")
    wait_until(lambda: served.steps > 5, "some steps")
    page.evaluate("document.hasFocus = () => false; dispatchEvent(new Event('blur'))")
    page.get_by_text("does not have the focus").wait_for()
    before = served.steps
    page.wait_for_timeout(500)
    assert served.steps == before
    page.evaluate("document.hasFocus = () => true; dispatchEvent(new Event('focus'))")
    page.wait_for_timeout(500)
    assert served.steps <= before + 1, "the key held before is released"


def test_changed_keys_are_kept_after_a_reload(context: BrowserContext, served: Served) -> None:
    page = open_page(context, served)
    page.locator("[data-action=skip] >> nth=0").click()
    page.keyboard.press("KeyX")
    page.reload()
    wait_until(lambda: served.teleop.live, "the page again")
    page.keyboard.press("KeyN")
    page.keyboard.press("KeyX")
    wait_until(lambda: served.session.num_discarded == 1, "the next initial state")
    page.get_by_role("button", name="Default keys").click()
    page.keyboard.press("KeyN")
    wait_until(lambda: served.session.num_discarded == 2, "the next initial state")


@pytest.mark.slow
def test_the_step_rate_is_steady_while_images_are_shown(context: BrowserContext, served: Served) -> None:
    """Needs an idle machine; see ``python -m benchmarks.teleop``."""
    page = open_page(context, served)
    steps_per_s, _, frames_per_s = measure(page, served, seconds=10)
    assert 18 <= steps_per_s <= 22
    assert frames_per_s >= 15


PAD = """
navigator.getGamepads = () => [{
  axes: [0, 0, 0, 0].map((_, i) => window.axes?.[i] ?? 0),
  buttons: [...Array(16).keys()].map(i => ({pressed: window.button === i, value: +(window.button === i)})),
}];
"""


def test_a_gamepad_steers_the_arm(context: BrowserContext, served: Served) -> None:
    context.add_init_script(PAD)
    page = open_page(context, served)

    def moved(x: float) -> float:
        before = ground_axes(served.simulator, "corner4") @ served.simulator.state[:3]
        at = served.steps
        page.evaluate(f"window.axes = [{x}, 0, 0, 0]")
        wait_until(lambda: served.steps >= at + 20, "steps")
        page.evaluate("window.axes = []")
        wait_until(lambda: served.session.waits, "the arm to come to rest")
        return float((ground_axes(served.simulator, "corner4") @ served.simulator.state[:3] - before)[0])

    page.evaluate("window.axes = [0.1, 0, 0, 0]")
    page.wait_for_timeout(300)
    assert served.steps == 0, "dead zone of the stick"
    far, less = moved(1.0), moved(0.5)
    assert far > 1.5 * less > 0, "half deflection is slower"
    page.evaluate("window.button = 0")
    wait_until(lambda: served.session.gripper > 0, "the gripper")
    page.wait_for_timeout(200)
    assert served.session.gripper > 0, "toggled once, however long it is pressed"
