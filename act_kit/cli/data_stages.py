"""The stages that produce data, each with a progress bar. This module avoids PyTorch, whose import takes a second."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from act_kit import interrupts
from act_kit.cli.console import Rate, info, progress_bar
from act_kit.collection.collect import Progress, collect
from act_kit.collection.render import render
from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, install_hint
from act_kit.parallel import Executor, ExecutorConfig
from act_kit.sim.render import RenderSettings, find_gl


def run_collection(config: CollectConfig, out: Path, *, executor: Executor, resume: bool = False) -> EpisodeStore:
    """Collect a dataset; Ctrl-C stops it between two attempts. ``resume`` also starts a new collection."""
    with progress_bar("rates") as bar, interrupts.deferred() as raise_if_interrupted:
        line = bar.add_task(f"collect {config.task}", total=config.n, rates="")
        speed = Rate()

        def show(progress: Progress) -> None:
            success = 100 * progress.num_kept / progress.num_attempts
            parts = [f"success {success:.0f} % of {progress.num_attempts}", speed(progress.num_kept)]
            bar.update(line, completed=progress.num_kept, rates=", ".join(filter(None, parts)))
            raise_if_interrupted()

        return collect(config, out, executor=executor, resume=resume and out.exists(), on_progress=show)


def run_rendering(
    store: EpisodeStore,
    cameras: Sequence[str],
    settings: RenderSettings,
    *,
    executor_config: ExecutorConfig,
    overwrite: bool,
) -> None:
    """Add images to a dataset."""
    gl = find_gl(executor_config.num_workers)
    info(f"Rendering with {gl}")
    with (
        executor_config.make_executor(gl.environment) as executor,
        progress_bar() as bar,
        interrupts.deferred() as raise_if_interrupted,
    ):
        line = bar.add_task(f"render {', '.join(cameras)}", total=store.num_episodes)

        def show(num_done: int) -> None:
            bar.update(line, completed=num_done)
            raise_if_interrupted()

        render(store, cameras, settings, executor=executor, overwrite=overwrite, on_progress=show)


def run_teleop(config: CollectConfig, out: Path, *, resume: bool = False) -> EpisodeStore:
    """Serve the teleoperation page until all demonstrations are recorded.

    Raises:
        KeyboardInterrupt: The server was stopped earlier; the kept demonstrations are on disk.
    """
    import asyncio
    import secrets
    from dataclasses import replace

    try:
        from act_kit.collection.teleop.server import HOST, Teleop, listen
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--demonstrator teleop needs {error.name}, which is not installed. Fix: {install_hint('teleop')}"
        ) from error
    from act_kit.collection.teleop.images import ImageWorker
    from act_kit.collection.teleop.session import Session
    from act_kit.sim.simulator import Simulator

    teleop = replace(config.teleop, operator=config.teleop.operator or _user())
    config = replace(config, teleop=teleop)
    gl = find_gl()
    simulator = Simulator(config.task, config.sim.engine)
    session = Session(config, out, simulator, resume=resume and out.exists())
    token = secrets.token_urlsafe(16)
    settings = RenderSettings(height_px=teleop.size_px, width_px=teleop.size_px)
    image = ImageWorker(gl, teleop.cameras, settings)
    try:
        with listen(teleop.port) as sock:
            port = sock.getsockname()[1]
            with interrupts.deferred() as raise_if_interrupted:
                info(f"Rendering with {gl}. Demonstrate here: http://{HOST}:{port}/?token={token}")
                info(f"From another machine, first: ssh -L {port}:{HOST}:{port} THIS_MACHINE. Stop with Ctrl-C.")
                asyncio.run(Teleop(session, simulator, image, token).run(sock))
                raise_if_interrupted()
    finally:
        image.close()
        store = session.finish()
    if store is None or session.num_kept < config.n:  # uvicorn stops at a signal that this process ignores
        raise KeyboardInterrupt
    return store


def _user() -> str:
    """Return the login name of the user, or ``user-UID`` if there is none."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"user-{os.getuid()}"
