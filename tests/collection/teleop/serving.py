"""A teleoperation session served from a thread, and pages that steer it, watch it or do not read."""

from __future__ import annotations

import asyncio
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from act_kit.collection.teleop.images import ImageWorker, ground_axes
from act_kit.collection.teleop.server import Teleop, listen
from act_kit.collection.teleop.session import Session
from act_kit.config.collection import CollectConfig
from act_kit.overrides import compose
from act_kit.sim.render import Gl, RenderSettings
from act_kit.sim.simulator import Simulator

KEYS = (("KeyD", "KeyA"), ("KeyW", "KeyS"), ("KeyE", "KeyQ"))
"""Right and left, away and near, up and down."""

Target = Callable[[np.ndarray], np.ndarray]
"""Position of the hand that an operator wants, given the state."""

TOKEN = "a-token"


def teleop_config(**flags: object) -> CollectConfig:
    """Compose the configuration of a session of two demonstrations of reach-v3."""
    defaults = {"task": "reach-v3", "n": 2, "demonstrator": "teleop", "teleop.operator": "anna"}
    return compose(CollectConfig, flags={**defaults, **flags})


@dataclass
class Served:
    """A session that is served.

    Attributes:
        host: Host of the page, with its port.
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
def serve(gl: Gl, path: Path, **flags: object) -> Iterator[Served]:
    """Serve a session until the block ends."""
    config = teleop_config(**flags)
    simulator = Simulator(config.task)
    session = Session(config, path, simulator)
    size = config.teleop.size_px
    image = ImageWorker(gl, config.teleop.cameras, RenderSettings(height_px=size, width_px=size))
    teleop = Teleop(session, simulator, image, TOKEN)
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
            image.close()
            loop.close()


@contextmanager
def unread_page(served: Served, client: str) -> Iterator[socket.socket]:
    """Connect as a page that never reads what it is sent."""
    host, port = served.host.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(
            f"GET /ws?token={TOKEN}&client={client} HTTP/1.1\r\nHost: {served.host}\r\nOrigin: http://{served.host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate\r\n"  # as every browser offers
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert peer.recv(12) == b"HTTP/1.1 101"
        yield peer


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


def go(page: Page, served: Served, target: Target, near_m: float = 0.0) -> None:
    """Press keys as an operator moves the hand to ``target``, until it is there or the episode is over."""
    axes = ground_axes(served.simulator, "corner4")
    held: set[str] = set()
    end = time.monotonic() + 60
    while served.session.phase in ("ready", "running"):
        assert time.monotonic() < end, f"not done in time: {page.inner_text('.facts')}"
        state = served.simulator.state
        way = axes @ (target(state) - state[:3])
        farthest = np.abs(way).max()
        if farthest < near_m:
            break
        wanted = zip(way, KEYS, strict=True)
        keys = {plus if part > 0 else minus for part, (plus, minus) in wanted if abs(part) > 0.5 * farthest}
        if farthest < 0.03:
            keys.add("ShiftLeft")
        for key in held - keys:
            page.keyboard.up(key)
        for key in keys - held:
            page.keyboard.down(key)
        held = keys
        page.wait_for_timeout(20)
    for key in held:
        page.keyboard.up(key)


def measure(page: Page, served: Served, seconds: float) -> tuple[float, float, float]:
    """Hold a key; return steps per second, the longest gap between two of them in ms, and frames per second."""
    page.keyboard.down("KeyE")
    wait_until(lambda: served.steps > 60, "the rate on the page, measured over two seconds")
    ticks: list[float] = []
    fps: list[float] = []
    last = served.steps
    end = time.monotonic() + seconds
    while time.monotonic() < end and served.session.phase == "running":
        if served.steps != last:
            last = served.steps
            ticks.append(time.monotonic())
            if last % 10 == 0:
                fps.append(float(page.inner_text("#fps").split()[0]))
        time.sleep(0.001)
    page.keyboard.up("KeyE")
    return (len(ticks) - 1) / (ticks[-1] - ticks[0]), 1000 * float(np.diff(ticks).max()), statistics.mean(fps)
