"""The images of the pages in the README, from real runs.

    python -m benchmarks.gallery --out gallery

Steers push-v3 through the page, with keys; collects demonstrations of it, trains and evaluates a policy, and
photographs the pages in the system's Chromium. What is finished is kept: the same command resumes. The images are
``docs/teleop.png``, ``docs/data.png`` and ``docs/evaluation.png``.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from benchmarks.command import act
from benchmarks.teleop import chromium, open_page, serve

TASK = "push-v3"
DOCS = Path(__file__).parents[1] / "docs"
_SIZE = ViewportSize(width=1280, height=860)
_KEYS = (("KeyW", 900), ("KeyA", 500), ("KeyQ", 700))
"""Keys that are held, and for how many milliseconds."""


def photograph(page: Page, name: str) -> None:
    """Save what is seen of a page, in few enough colors to be small."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256).save(DOCS / f"{name}.png", optimize=True)
    print(DOCS / f"{name}.png")


def photograph_teleop(browser: Browser) -> None:
    """Steer the arm through the page, and photograph it in the middle of an episode."""
    options = ("--task", TASK, "--n", "20", "teleop.size_px=336")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "data", *options) as (host, token):
        page = browser.new_page(viewport=_SIZE)
        open_page(page, host, token)
        for key, milliseconds in _KEYS:
            page.keyboard.down(key)
            page.wait_for_timeout(milliseconds)
            page.keyboard.up(key)
        page.wait_for_timeout(500)
        photograph(page, "teleop")
        page.close()


def main() -> None:
    """Make what is missing, and photograph the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gallery"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        photograph_teleop(browser)
        steps: dict[str, tuple[object, ...]] = {
            "data": ("collect", "--task", TASK, "--n", 60, "--resume"),
            "run": ("train", "--data", out / "data", "trainer.steps=400", "--resume"),
            "eval": ("eval", out / "run", "--record-video", "--episodes", 30),
            "view": ("data", "browse", out / "data"),
        }
        for name, step in steps.items():
            if "--resume" in step or not (out / name).exists():
                act(*step, "--out", out / name)
        page = browser.new_page(viewport=_SIZE)
        page.goto(f"{(out / 'view' / 'view.html').resolve().as_uri()}#3")
        page.wait_for_timeout(1500)
        photograph(page, "data")
        page.set_viewport_size(ViewportSize(width=1280, height=1250))
        page.goto((out / "eval" / "report.html").resolve().as_uri())
        page.emulate_media(color_scheme="dark")
        photograph(page, "evaluation")
        browser.close()


if __name__ == "__main__":
    main()
