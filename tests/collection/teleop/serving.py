"""A page to demonstrate from, served in a thread of the test, so that the test can see what an operator would."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from act_kit.collection.teleop.picture import Picture
from act_kit.collection.teleop.server import Teleop, listen
from act_kit.collection.teleop.session import Session
from act_kit.config import CollectConfig
from act_kit.overrides import compose
from act_kit.sim.render import Gl, RenderSettings
from act_kit.sim.simulator import Simulator

TOKEN = "a-token"


def teleop_config(**flags: object) -> CollectConfig:
    return compose(
        "collect", CollectConfig,
        flags={"task": "reach-v3", "n": 2, "demonstrator": "teleop", "teleop.operator": "anna", **flags},
    )  # fmt: skip


@dataclass
class Served:
    """A session that is served.

    Attributes:
        session: What is demonstrated.
        teleop: What serves it.
        host: Of the page, with its port.
        simulator: What is steered.
    """

    session: Session
    teleop: Teleop
    host: str
    simulator: Simulator

    @property
    def url(self) -> str:
        return f"http://{self.host}/?token={TOKEN}"

    @property
    def steps(self) -> int:
        return self.session.num_steps


@contextmanager
def serve(gl: Gl, path: Path, *, resume: bool = False, **flags: object) -> Iterator[Served]:
    """Serve a session until the block ends."""
    config = teleop_config(**flags)
    simulator = Simulator(config.task)
    session = Session(config, path, simulator, resume=resume)
    size = config.teleop.size_px
    picture = Picture(gl, config.teleop.cameras, RenderSettings(height_px=size, width_px=size))
    teleop = Teleop(session, simulator, picture, TOKEN)
    loop = asyncio.new_event_loop()
    with listen(0) as listening:
        running = loop.create_task(teleop.run(listening))

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(running)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Served(session, teleop, f"127.0.0.1:{listening.getsockname()[1]}", simulator)
        finally:
            loop.call_soon_threadsafe(running.cancel)
            thread.join()
            picture.close()
            loop.close()


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)
