"""How steadily time passes for an operator, and how smooth the images are: through a real browser.

    python -m benchmarks.teleop --seconds 15

``act collect --demonstrator teleop`` is started, its page is opened in the system's Chromium without a display, on the
same machine and its processors, and a key is held. Printed for each size and number of cameras: steps per second, the
longest gap between two steps as the page sees them, frames per second that the page shows, and the time from a key
press to the next new frame.

    python -m benchmarks.teleop --spectators 60 --seconds 10

Without a browser: steps per second without spectators and with many that never read what they are sent, in turns.
Those that the server disconnects connect again at once.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright
from websockets.sync.client import connect
from websockets.typing import Origin

from act_kit.sim.render import find_gl
from benchmarks.command import ONE_THREAD

CASES = ((224, "[corner4]"), (224, "[corner4,topview]"), (336, "[corner4]"), (480, "[corner4]"))


@contextmanager
def serve(data: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Run ``act collect --demonstrator teleop`` until the block ends; yield the host and the token of its page."""
    program = "from act_kit.cli import main; main()"
    words = ["collect", "--demonstrator", "teleop", "teleop.operator=anna", "teleop.port=0", "--out", str(data)]
    command = [sys.executable, "-c", program, *words, *options]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=ONE_THREAD) as process:
        assert process.stdout is not None
        try:
            address = next(filter(None, (re.search(r"http://(\S+)/\?token=(\S+)", line) for line in process.stdout)))
            yield address[1], address[2]
        finally:
            process.terminate()


def chromium() -> str | None:
    """Return the system's Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain: {what}")
        time.sleep(0.01)


def open_page(page: Page, host: str, token: str) -> None:
    """Open the page of a session, and wait until it steers."""
    page.goto(f"http://{host}/?token={token}")
    wait_until(lambda: page.evaluate("shownAt.length && status?.live"), "an image and the control")


def rate_and_gap(ticks: list[float]) -> tuple[float, float]:
    """Return steps per second, and the longest gap between two steps in ms."""
    return (len(ticks) - 1) / (ticks[-1] - ticks[0]), 1000 * float(np.diff(ticks).max())


def measure(page: Page, seconds: float) -> tuple[float, float, float]:
    """Hold a key; return steps per second, the longest gap between two of them in ms, and frames per second."""
    page.keyboard.down("KeyE")
    wait_until(lambda: page.evaluate("status.step > 60"), "the rate on the page, measured over two seconds")
    ticks: list[float] = []
    fps: list[float] = []
    last = page.evaluate("status.step")
    end = time.monotonic() + seconds
    while time.monotonic() < end and page.evaluate("status.phase") == "running":
        step = page.evaluate("status.step")
        if step != last:
            last = step
            ticks.append(time.monotonic())
            if step % 10 == 0:
                fps.append(float(page.inner_text("#fps").split()[0]))
        time.sleep(0.001)
    page.keyboard.up("KeyE")
    return *rate_and_gap(ticks), statistics.mean(fps)


def latency_ms(page: Page) -> float:
    """Return the median time from a key press, at rest, to the next frame that is shown."""
    page.keyboard.press("KeyR")  # enough steps are left then
    times = []
    for i in range(10):
        wait_until(lambda: page.evaluate("status.waits || status.phase === 'ready'"), "the arm to come to rest")
        page.wait_for_timeout(300)
        before = page.evaluate("shownAt.at(-1) ?? 0")
        key = ("KeyW", "KeyS")[i % 2]
        began = time.monotonic()
        page.keyboard.down(key)
        page.wait_for_function("before => (shownAt.at(-1) ?? 0) !== before", arg=before, polling="raf")
        times.append(time.monotonic() - began)
        page.keyboard.up(key)
    return 1000 * statistics.median(times)


def measure_pages(seconds: float) -> None:
    """Print a line for each size and number of cameras."""
    print("| image | steps/s | longest gap (ms) | frames/s | key to image (ms) |\n|---|---|---|---|---|")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        for number, (size, cameras) in enumerate(CASES):
            options = ("--task", "reach-v3", "--n", "2", f"teleop.size_px={size}", f"teleop.cameras={cameras}")
            with serve(Path(folder) / str(number), *options) as (host, token):
                page = browser.new_page()
                open_page(page, host, token)
                rate, gap, fps = measure(page, seconds)
                delay = latency_ms(page)
                page.close()
            num_cameras = cameras.count(",") + 1
            print(f"| {num_cameras} x {size} px | {rate:.1f} | {gap:.0f} | {fps:.1f} | {delay:.0f} |", flush=True)
        browser.close()


def connect_unread(host: str, token: str, client: str) -> socket.socket:
    """Connect as a page that never reads what it is sent."""
    name, port = host.split(":")
    peer = socket.create_connection((name, int(port)), timeout=10)
    peer.sendall(
        f"GET /ws?token={token}&client={client} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert peer.recv(12) == b"HTTP/1.1 101"
    return peer


def is_connected(peer: socket.socket) -> bool:
    """Return True unless the server has closed the connection."""
    established = 1  # linux/include/net/tcp_states.h
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == established


def measure_crowd(host: str, token: str, num: int, seconds: float) -> tuple[float, float]:
    """Steer before ``num`` spectators that never read; return steps per second, and the longest gap in ms."""
    ticks: list[float] = []
    up = 0
    status = {"attempt": -1, "step": 0}
    url = f"ws://{host}/ws?token={token}&client=operator"
    with connect(url, origin=Origin(f"http://{host}"), max_queue=None) as page, ExitStack() as stack:
        while status["attempt"] < 0:
            message = page.recv(timeout=10)
            if isinstance(message, str) and "attempt" in message:
                status = json.loads(message)
        page.send(json.dumps({"type": "command", "name": "restart", "attempt": status["attempt"]}))
        peers = [stack.enter_context(connect_unread(host, token, f"unread{i}")) for i in range(num)]
        end, next_input, last = time.monotonic() + seconds, 0.0, 0
        while time.monotonic() < end:
            if time.monotonic() > next_input:
                up = 1 - up
                page.send(json.dumps({"type": "input", "right": 0, "away": 0, "up": up, "slow": True}))
                next_input = time.monotonic() + 0.05
            try:
                message = page.recv(timeout=0.01)
            except TimeoutError:
                continue
            step = json.loads(message).get("step", last) if isinstance(message, str) else last
            if step != last:
                last = step
                ticks.append(time.monotonic())
                if last % 20 == 0:  # once a second
                    for i, peer in enumerate(peers):
                        if not is_connected(peer):
                            peers[i] = stack.enter_context(connect_unread(host, token, f"late{last}-{i}"))
    return rate_and_gap(ticks)


def compare_crowds(num: int, seconds: float) -> None:
    """Print steps per second with and without spectators, in turns."""
    print("| spectators that do not read | steps/s | longest gap (ms) |\n|---|---|---|")
    options = ("--task", "reach-v3", "--n", "2")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "data", *options) as (host, token):
        for present in (0, num) * 3:
            rate, gap = measure_crowd(host, token, present, seconds)
            print(f"| {present} | {rate:.1f} | {gap:.0f} |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each line")
    parser.add_argument("--spectators", type=int, default=0, help="measure with so many that do not read, instead")
    arguments = parser.parse_args()
    seconds = min(arguments.seconds, 20.0)  # an episode ends after 25
    print(f"20 Hz requested; rendered by {find_gl()}\n")
    if arguments.spectators:
        compare_crowds(arguments.spectators, seconds)
    else:
        measure_pages(seconds)


if __name__ == "__main__":
    main()
