"""How steadily time passes for who demonstrates by hand, and how smooth the picture is: through a real browser.

    python -m benchmarks.teleop --seconds 15

The page is opened in the system's Chromium without a display, on the same machine and its processors, and a key is
held. Printed are, for each size and number of cameras: steps a second, the longest gap between two steps, frames a
second that the page shows, and the time from a key's press to the next new frame.

    python -m benchmarks.teleop --spectators 60 --seconds 10

Without a browser: steps a second with no spectators and with so many that never read what they are sent, in turns.
Those that the server disconnects connect again at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright
from websockets.sync.client import ClientConnection, connect

from act_kit.collection.teleop.images import ImageWorker, ground_axes
from act_kit.collection.teleop.server import Teleop, listen
from act_kit.collection.teleop.session import Session
from act_kit.config import CollectConfig
from act_kit.overrides import compose
from act_kit.sim.render import Gl, RenderSettings, find_gl
from act_kit.sim.simulator import Simulator

CASES = ((224, ("corner4",)), (224, ("corner4", "topview")), (336, ("corner4",)), (480, ("corner4",)))
_WAYS = ("KeyW", "KeyS")

KEYS = (("KeyD", "KeyA"), ("KeyW", "KeyS"), ("KeyE", "KeyQ"))
"""Right and left, away and near, up and down."""

Target = Callable[[np.ndarray], np.ndarray]
"""Where an operator wants the hand to be, in a state."""

TOKEN = "a-token"


def teleop_config(**flags: object) -> CollectConfig:
    return compose(CollectConfig,
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
    """Press keys as an operator moves the hand to ``target``, until it is, or the episode is over."""
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


def chromium() -> str | None:
    """Return the system's Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def measure(page: Page, served: Served, seconds: float) -> tuple[float, float, float]:
    """Hold a key; return steps a second, the longest gap between two of them in ms, and frames a second."""
    page.keyboard.down("KeyE")
    wait_until(lambda: served.steps > 60, "the page's own figure, which looks back two seconds")
    ticks, fps, last = [], [], served.steps
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


def steer_on(page: ClientConnection, stop: threading.Event) -> None:
    """Hold a key as a page does, and read what it is sent, until told to stop."""
    message = {"type": "input", "right": 0, "away": 0, "up": 0, "slow": True}
    while not stop.wait(0.05):
        message["up"] = 1 - message["up"]
        page.send(json.dumps(message))
        with suppress(TimeoutError):
            while True:
                page.recv(timeout=0)


def measure_crowd(served: Served, num: int, seconds: float) -> tuple[float, float]:
    """Return steps a second, and the longest gap between two in ms, before ``num`` spectators that never read."""
    stop, ticks = threading.Event(), []
    url = f"ws://{served.host}/ws?token={TOKEN}&client=operator"
    with connect(url, origin=f"http://{served.host}", max_queue=None) as page, ExitStack() as stack:
        page.send(json.dumps({"type": "command", "name": "restart", "attempt": served.session.attempt}))
        steering = threading.Thread(target=steer_on, args=(page, stop))
        steering.start()
        stack.callback(lambda: (stop.set(), steering.join()))
        peers = [stack.enter_context(unread_page(served, f"unread{i}")) for i in range(num)]
        wait_until(lambda: 0 < served.steps < 100, "the first step")
        last, end = served.steps, time.monotonic() + seconds
        while time.monotonic() < end:
            if served.steps != last:
                last = served.steps
                ticks.append(time.monotonic())
                if num and last % 20 == 0:  # once a second
                    peers += [
                        stack.enter_context(unread_page(served, f"late{last}-{i}"))
                        for i in range(num_gone(served, num))
                    ]
            time.sleep(0.001)
    return (len(ticks) - 1) / (ticks[-1] - ticks[0]), 1000 * float(np.diff(ticks).max())


def num_gone(served: Served, num: int) -> int:
    """Return how many of ``num`` spectators the server has disconnected."""
    return max(0, num + 1 - len(served.teleop._clients))


def compare_crowds(gl: Gl, num: int, seconds: float) -> None:
    """Print steps a second with and without spectators, in turns."""
    print("| spectators that do not read | steps/s | longest gap (ms) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, serve(gl, Path(folder) / "data") as served:
        for present in (0, num) * 3:
            rate, gap = measure_crowd(served, present, seconds)
            print(f"| {present} | {rate:.1f} | {gap:.0f} |", flush=True)


def latency_ms(page: Page, served: Served) -> float:
    """Return the median time from a key's press, at rest, to the next frame that is shown."""
    page.keyboard.press("KeyR")  # enough steps are left then
    times = []
    for i in range(10):
        wait_until(lambda: served.session.waits, "the arm to come to rest")
        page.wait_for_timeout(300)
        before = page.evaluate("shownAt.at(-1) ?? 0")
        key, began = _WAYS[i % 2], time.monotonic()
        page.keyboard.down(key)
        wait_until(lambda before=before: page.evaluate("shownAt.at(-1) ?? 0") != before, "a new frame")
        times.append(time.monotonic() - began)
        page.keyboard.up(key)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each line")
    parser.add_argument("--spectators", type=int, default=0, help="measure with so many that do not read, instead")
    arguments = parser.parse_args()
    seconds = min(arguments.seconds, 20.0)  # an episode ends after 25
    gl = find_gl()
    print(f"20 Hz asked for; drawn by {gl}\n")
    if arguments.spectators:
        compare_crowds(gl, arguments.spectators, seconds)
        return
    print("| image | steps/s | longest gap (ms) | frames/s | key to image (ms) |\n|---|---|---|---|---|")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        for size, cameras in CASES:
            flags = {"teleop.size_px": size, "teleop.cameras": cameras}
            with tempfile.TemporaryDirectory() as folder, serve(gl, Path(folder) / "data", **flags) as served:
                page = browser.new_page()
                page.goto(served.url)
                wait_until(lambda page=page: page.evaluate("shownAt.length"), "an image")
                rate, gap, fps = measure(page, served, seconds)
                delay = latency_ms(page, served)
                page.close()
            print(f"| {len(cameras)} x {size} px | {rate:.1f} | {gap:.0f} | {fps:.1f} | {delay:.0f} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
