"""The images of the pages in the README, from real runs.

    python -m benchmarks.gallery --out gallery

Demonstrates push-v3 a few times through the page, with keys; collects more of it, trains and evaluates a policy, and
photographs the pages in the system's Chromium. What is finished is kept: the same command goes on. The images are
``docs/teleop.png``, ``docs/data.png`` and ``docs/evaluation.png``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from act_kit.sim.render import find_gl
from benchmarks.command import act
from benchmarks.teleop import Served, chromium, go, serve, wait_until

TASK = "push-v3"
NUM_BY_HAND = 6
DOCS = Path(__file__).parents[1] / "docs"
_SIZE = {"width": 1280, "height": 860}


def photograph(page: Page, name: str) -> None:
    """Save what is seen of a page, in few enough colours to be small."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256).save(DOCS / f"{name}.png", optimize=True)
    print(DOCS / f"{name}.png")


def push(page: Page, served: Served, *, until: str = "") -> None:
    """Demonstrate push-v3 with keys: above the object, down, close, to the goal; or only until it is in the hand."""
    go(page, served, lambda state: np.add(state[4:7], [0, 0, 0.15]), near_m=0.01)
    go(page, served, lambda state: np.add(state[4:7], [0, 0, 0.03]), near_m=0.01)
    page.keyboard.press("Space")
    wait_until(lambda: served.session.waits, "the gripper to close")
    go(page, served, lambda state: np.append(state[36:38], state[2]), near_m=0.12 if until == "half way" else 0.0)


def by_hand(browser: Browser, data: Path) -> None:
    """Demonstrate through the page, and photograph it in the middle of an episode."""
    flags = {"task": TASK, "n": 20, "teleop.size_px": 336}
    with serve(find_gl(), data, resume=data.exists(), **flags) as served:
        page = browser.new_page(viewport=_SIZE)
        page.goto(served.url)
        wait_until(lambda: page.evaluate("shownAt.length"), "an image")
        while served.session.num_kept < NUM_BY_HAND:
            push(page, served)
            attempt = served.session.attempt
            page.keyboard.press("Enter" if served.session.succeeded else "KeyN")
            wait_until(lambda attempt=attempt: served.session.attempt > attempt, "the next episode")
        push(page, served, until="half way")
        page.wait_for_timeout(500)
        photograph(page, "teleop")
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gallery"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        by_hand(browser, out / "by-hand")
        steps = {
            "scripted": ("collect", "--task", TASK, "--n", 60),
            "data": ("data", "merge", out / "by-hand", out / "scripted"),
            "run": ("train", "--data", out / "data", "trainer.steps=400"),
            "eval": ("eval", out / "run", "--record-video", "--episodes 30"),
            "view": ("data", "browse", out / "data"),
        }
        for name, step in steps.items():
            if not (out / name).exists():
                act(*step, "--out", out / name)
        page = browser.new_page(viewport=_SIZE)
        page.goto(f"{(out / 'view' / 'view.html').resolve().as_uri()}#3")
        page.wait_for_timeout(1500)
        photograph(page, "data")
        page.set_viewport_size({**_SIZE, "height": 1250})
        page.goto((out / "eval" / "report.html").resolve().as_uri())
        page.emulate_media(color_scheme="dark")
        photograph(page, "evaluation")
        browser.close()


if __name__ == "__main__":
    main()
