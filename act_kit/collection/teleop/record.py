"""Recording of demonstrations by an operator, on a page that is served until all are recorded."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path

from act_kit import interrupts
from act_kit.collection.teleop.images import ImageWorker
from act_kit.collection.teleop.server import HOST, Teleop, listen
from act_kit.collection.teleop.session import Session
from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.sim.render import RenderSettings, find_gl
from act_kit.sim.simulator import Simulator


def record(config: CollectConfig, out: Path, *, resume: bool = False) -> EpisodeStore:
    """Serve the teleoperation page until all demonstrations are recorded; its address is logged.

    Raises:
        KeyboardInterrupt: The server was stopped earlier; the kept demonstrations are on disk.
    """
    teleop = replace(config.teleop, operator=config.teleop.operator or _user())
    config = replace(config, teleop=teleop)
    gl = find_gl()
    simulator = Simulator(config.task, config.sim.engine)
    session = Session(config, out, simulator, resume=resume and out.exists())
    token = secrets.token_urlsafe(16)
    image = ImageWorker(gl, teleop.cameras, RenderSettings(height_px=teleop.size_px, width_px=teleop.size_px))
    try:
        with listen(teleop.port) as sock, interrupts.deferred() as raise_if_interrupted:
            port = sock.getsockname()[1]
            log = logging.getLogger("act_kit")
            log.info(f"Rendering with {gl}. Demonstrate here: http://{HOST}:{port}/?token={token}")
            log.info(f"From another machine, first: ssh -L {port}:{HOST}:{port} THIS_MACHINE. Stop with Ctrl-C.")
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
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"user-{os.getuid()}"
