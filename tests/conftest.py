"""Small real things that many tests need: datasets from Meta-World, a policy trained for seconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from act_kit.collection.collect import collect
from act_kit.collection.render import render
from act_kit.config.collection import CollectConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import RenderError
from act_kit.overrides import compose, given_options
from act_kit.parallel import LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.sim.render import Gl, RenderSettings, find_gl
from act_kit.training.run import create_run, resume_run
from act_kit.training.trainer import Trainer
from tests.pages import check_page

torch.set_num_threads(1)

# Of a script's background jobs the shell ignores it, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("ACT_KIT_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "act_kit"))

Open = Callable[[Path], Page]
"""Opens a page in a browser."""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Tests run side by side: each that took every processor would wait for the others."""

SERIAL = LocalExecutor(1)
"""This process, for what takes a moment."""

TINY = (
    "policy.cvae_layers=1",
    "policy.dim_model=32",
    "policy.dim_feedforward=64",
    "policy.latent_dim=8",
    "policy.chunk_size=8",
    "chunking.n_action_steps=4",
    "trainer.batch_size=32",
    "trainer.lr=2e-3",
    "trainer.steps=60",
    "trainer.validate_every=20",
    "trainer.log_every=10",
    "selection.episodes=2",
    "selection.num_evaluations=2",
)

IMAGES = ("policy.inputs=image+proprio", "policy.cameras=[corner4]", "policy.backbone=small")
"""Overrides for a training on images."""


def make_dataset(path: Path, *, resume: bool = False, **flags: object) -> EpisodeStore:
    """Collect a dataset in this process, of episodes shorter than by default and without noise."""
    config = compose(CollectConfig, flags={"task": "reach-v3", "n": 10, "steps_after_success": 10, "noise": 0, **flags})
    return collect(config, path, executor=SERIAL, resume=resume)


def contents(path: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def tiny_config(*overrides: str) -> TrainConfig:
    """Compose a training that takes seconds."""
    return compose(TrainConfig, [*TINY, *overrides])


def make_run(
    run: Path, data: Sequence[Path], overrides: Sequence[str], flags: dict[str, Any], *, overwrite: bool = False
) -> TrainConfig:
    """Create the folder of a run with options as on the command line, and return its configuration."""
    config = compose(TrainConfig, overrides, flags)
    create_run(run, data, config, overwrite=overwrite)
    return config


def continue_run(
    run: Path, data: Sequence[Path], overrides: Sequence[str], flags: dict[str, Any]
) -> tuple[TrainConfig, list[Path]]:
    """Load a run to resume it with options as on the command line."""
    return resume_run(run, data, compose(TrainConfig, overrides, flags), given_options(overrides, flags))


@pytest.fixture(scope="session")
def reach_store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Ten randomised demonstrations of reach-v3."""
    return make_dataset(tmp_path_factory.mktemp("reach") / "data")


@pytest.fixture(scope="session")
def one_init_state_store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Ten copies of one demonstration of reach-v3."""
    return make_dataset(tmp_path_factory.mktemp("fixed") / "data", num_init_states=1)


@pytest.fixture(scope="session")
def push_store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Four randomised demonstrations of push-v3."""
    return make_dataset(tmp_path_factory.mktemp("push") / "data", task="push-v3", n=4)


@pytest.fixture(scope="session")
def images_store(gl: Gl, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Four randomised demonstrations of reach-v3, drawn from two cameras at 32 px."""
    store = make_dataset(tmp_path_factory.mktemp("images") / "data", n=4)
    settings = RenderSettings(height_px=32, width_px=32)
    with LocalExecutor(1, gl.environment) as executor:
        render(store, ["corner4", "topview"], settings, executor=executor)
    return store


@pytest.fixture(scope="session")
def tiny_run(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixty steps without rollouts."""
    run = tmp_path_factory.mktemp("run")
    Trainer(tiny_config(), [reach_store], run, evaluator=None).train()
    return run


@pytest.fixture
def tiny_policy(tiny_run: Path) -> Policy:
    """The policy of that run."""
    return Policy.load(tiny_run)


@pytest.fixture(scope="session")
def gl() -> Gl:
    """Skip where no OpenGL library draws."""
    try:
        return find_gl()
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium, without a display; skip where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no browser: no chromium or google-chrome is on the PATH")
    with sync_playwright() as playwright:
        # A container's shared memory is too small for it.
        yield playwright.chromium.launch(executable_path=found, args=["--disable-dev-shm-usage"])


def act(*arguments: object, check: int | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, after the lines of Python in ``patch``, which break something."""
    program = f"{options.pop('patch', '')}\nfrom act_kit.cli import main\nmain()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    options = {"capture_output": True, "timeout": 300, "env": ONE_THREAD, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(command, text=True, **options)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 420, "height": 800}


@pytest.fixture(params=[LAPTOP, PHONE], ids=["laptop", "phone"])
def show(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open a page, which must fit the screen, ask the network for nothing and complain of nothing."""
    context = browser.new_context(viewport=request.param)
    complaints: list[str] = []
    requests: list[str] = []

    def show(path: Path) -> Page:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: requests.append(asked.url[:80]))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= request.param["width"]
        broken = "[...document.images].filter(image => !image.naturalWidth).length"
        assert page.evaluate(broken) == 0, "broken images"
        check_page(page)
        return page

    yield show
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
