"""Web server of the teleoperation page: access, control of the arm, and messages to the pages.

Steps are made at the control rate, independent of browsers and rendering. One page at a time is the controller; if it
is closed, or loses the focus or its connection, the arm stops and time stops until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.datastructures import Headers
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from act_kit import interrupts
from act_kit.collection.teleop.connections import (
    MAX_MESSAGE_BYTES,
    Client,
    PageProtocol,
    RequestProtocol,
    limit_buffers,
    quiet_logs,
)
from act_kit.collection.teleop.coverage import CoverageMap
from act_kit.collection.teleop.images import ImageWorker, ground_axes
from act_kit.collection.teleop.session import CLOSED, Session
from act_kit.errors import ActKitError, ConfigError
from act_kit.pages import render_page
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import CONTROL_HZ, HORIZON, get_task

HOST = "127.0.0.1"
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Allowed values of the Host header: another name that resolves to this machine may be DNS rebinding."""

INPUT_TIMEOUT_S = 0.3
"""Seconds without a message from the controller after which the arm stops. A page sends 20 messages a second."""
RESERVATION_S = 10.0
"""Seconds that control is reserved for a page whose connection dropped, before another may take it."""
MAX_PAGES = 65
"""Maximum number of connected pages: one controller and a class of spectators."""
SPECTATORS_PER_TICK = 8
"""Maximum number of spectators served in one control period. More take turns and see fewer images a second, because
sending takes time of the thread that makes the steps."""
_CLOSE_DELAY_S = 1.0

_log = logging.getLogger(__name__)


class Teleop:
    """Teleoperation session and the pages that show it.

    Attributes:
        live: True while the controller is connected and has the focus.
        rate_hz: Measured steps per second over the last two seconds of steps; NaN before the first ones.
    """

    def __init__(self, session: Session, simulator: Simulator, image: ImageWorker, token: str) -> None:
        self._session = session
        self._image = image
        self._token = token
        config = session.config
        self._axes = ground_axes(simulator, config.teleop.cameras[0])
        self._coverage = CoverageMap(get_task(config.task), config.n)
        self._clients: dict[str, Client] = {}
        self._controller: str | None = None
        self._last_message_s = time.monotonic()
        self._is_released = True
        self._notice = ""
        self._step_times_s: deque[float] = deque(maxlen=2 * config.teleop.rate_hz + 1)
        self._changed = asyncio.Event()
        self._changed.set()
        self._frame: bytes | None = None
        self._turn = 0
        self._map_json = self._coverage_json()
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        self.app.add_api_route("/", self._page, methods=["GET"], response_class=HTMLResponse)
        self.app.add_api_websocket_route("/ws", self._connect)

    # -- time --------------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> None:
        """Serve pages on a listening socket until the dataset is complete, or until Ctrl-C."""
        config = uvicorn.Config(
            self.app,
            http=RequestProtocol,
            ws=PageProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # images are compressed already: it would only cost a millisecond
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        with quiet_logs():
            await self._run(uvicorn.Server(config), listening)

    async def _run(self, server: uvicorn.Server, listening: socket.socket) -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        loops = [asyncio.create_task(self._keep_time()), asyncio.create_task(self._render_images())]
        try:
            done, _ = await asyncio.wait([serving, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.sleep(_CLOSE_DELAY_S)  # for the last message to each page
        finally:
            for task in loops:
                task.cancel()
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    async def _keep_time(self) -> None:
        """Tick at the control rate; when late, skip the missed ticks."""
        period = 1 / self._session.config.teleop.rate_hz
        due = time.monotonic()
        while self._session.phase != "done" and not interrupts.interrupted():
            due = max(due + period, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if not self.live:
                self._session.release()
            elif self._session.tick():
                self._step_times_s.append(time.monotonic())
                self._changed.set()
            if self._step_times_s and time.monotonic() - self._step_times_s[-1] > 2 * period:
                self._step_times_s.clear()  # a pause is not a slow step
            self._send_status()
        self._send_status()

    @property
    def live(self) -> bool:
        """True while the controller is connected and has the focus."""
        return self._controller in self._clients and not self._is_released and self._idle_s <= INPUT_TIMEOUT_S

    @property
    def _idle_s(self) -> float:
        return time.monotonic() - self._last_message_s

    @property
    def _is_free(self) -> bool:
        """True if a page may take control: there is no controller, or its messages have stopped for a while."""
        return self._controller is None or self._idle_s > RESERVATION_S

    @property
    def rate_hz(self) -> float:
        num = len(self._step_times_s) - 1
        return num / (self._step_times_s[-1] - self._step_times_s[0]) if num > 0 else math.nan

    async def _render_images(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self._frame = await self._image.draw(self._session.init_state, self._session.simulator.physics())
            except BrokenProcessPool:
                self._notice = "No image: the rendering process died (out of memory?)."
                await asyncio.sleep(1.0)
                continue
            if self._controller in self._clients:
                self._clients[self._controller].put_frame(self._frame)

    # -- messages to the pages --------------------------------------------------------------------------------------

    def _send_status(self) -> None:
        """Send the status to the controller and to the spectators whose turn it is."""
        if self._controller in self._clients:
            self._clients[self._controller].put("status", self._status("controller"))
        spectators = [client for name, client in self._clients.items() if name != self._controller]
        status = self._status("spectator") if spectators else ""
        for i in range(min(SPECTATORS_PER_TICK, len(spectators))):
            client = spectators[(self._turn + i) % len(spectators)]
            client.put("status", status)
            if self._frame is not None and self._frame is not client.last_frame:
                client.put_frame(self._frame)
        self._turn += SPECTATORS_PER_TICK

    def _status(self, role: str) -> str:
        session = self._session
        rate_hz = self.rate_hz
        status = {
            "type": "status",
            "role": role,
            "free": self._is_free,
            "live": self.live,
            "phase": session.phase,
            "waits": session.waits and session.phase == "running",
            "attempt": session.attempt,
            "kept": session.num_kept,
            "discarded": session.num_discarded,
            "step": session.num_steps,
            "distance": float(session.simulator.distance),
            "succeeds": session.succeeds_now,
            "succeeded": session.succeeded,
            "gripper": "closed" if session.gripper == CLOSED else "open",
            "rate": None if math.isnan(rate_hz) else rate_hz,
            "says": self._notice,
        }
        return json.dumps(status)

    def _coverage_json(self) -> str:
        session = self._session
        kept, discarded = session.init_states(kept=True), session.init_states(kept=False)
        return json.dumps({"type": "map", **self._coverage.compute(kept, discarded, session.init_state.array)})

    # -- messages from the pages -------------------------------------------------------------------------------------

    def _handle_message(self, client: Client, text: str) -> None:
        """Process a message from a page; ignore an invalid one, and one that the page may not send."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if message.get("type") == "take" and self._is_free:
            self._controller, self._last_message_s, self._is_released = client.name, time.monotonic(), True
        if client.name != self._controller or self._session.phase == "done":
            return
        match message:
            case {"type": "input", "right": right, "away": away, "up": up, "slow": bool(slow)}:
                direction = (right, away, up)
                if all(map(_is_fraction, direction)):
                    self._last_message_s, self._is_released = time.monotonic(), False
                    self._session.steer(np.array(direction, dtype=np.float64) @ self._axes, slow=slow)
            case {"type": "release"}:
                self._last_message_s, self._is_released = time.monotonic(), True
            case {"type": "command", "name": str(name), "attempt": self._session.attempt}:
                self._run_command(name)

    def _run_command(self, name: str) -> None:
        session = self._session
        commands: dict[str, tuple[Callable[[], None], str]] = {
            "gripper": (session.toggle_gripper, ""),
            "keep": (session.keep, f"Episode {session.num_kept + 1} is kept: it is on disk."),
            "discard": (session.skip, "Discarded. Next initial state."),
            "restart": (session.restart, "Same initial state again."),
            "skip": (session.skip, "Skipped. Next initial state."),
        }
        if name not in commands:
            return
        command, notice = commands[name]
        try:
            command()
        except ActKitError as error:
            notice = str(error)
        except OSError as error:
            notice = (
                f"The episode could not be stored ({error}); it is still in memory. Fix: free some space, then keep it."
            )
            _log.warning(notice)
        self._notice = notice
        self._changed.set()
        self._map_json = self._coverage_json()
        for client in self._clients.values():
            client.put("map", self._map_json)

    # -- connections -------------------------------------------------------------------------------------------------

    def _refusal(self, headers: Headers, token: str, *, origin: bool) -> str:
        """Return the reason for refusing a request, or "" to answer it."""
        host = headers.get("host", "")
        if not _LOOPBACK.fullmatch(host):
            return f"This page is served to this machine only, not as {host[:100]!r}. Fix: open the printed address."
        if origin and headers.getlist("origin") != [f"http://{host}"]:
            return "Only this server's own page may connect."
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return "The token is missing or wrong. Fix: open the whole address that act collect printed."
        return ""

    async def _page(self, request: Request) -> Response:
        refusal = self._refusal(request.headers, request.query_params.get("token", ""), origin=False)
        if refusal:
            return PlainTextResponse(refusal, status_code=403)
        if self._is_full:
            return PlainTextResponse(
                f"{MAX_PAGES} pages are open already: expected fewer. Fix: close some, then reload this one.",
                status_code=503,
            )
        nonce = secrets.token_urlsafe(16)
        config = self._session.config
        page = render_page(
            "teleop.html.j2",
            {
                "title": f"{config.task}: teleoperation",
                "nonce": nonce,
                "task": get_task(config.task),
                "num_wanted": config.n,
                "path": str(self._session.path),
                "cameras": config.teleop.cameras,
                "size_px": config.teleop.size_px,
                "rate_hz": config.teleop.rate_hz,
                "control_hz": CONTROL_HZ,
                "horizon": HORIZON,
                "operator": config.teleop.operator,
            },
        )
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src blob: data:; "
        headers = {
            "Content-Security-Policy": policy + "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return HTMLResponse(page, headers=headers)

    @property
    def _is_full(self) -> bool:
        return len(self._clients) >= MAX_PAGES

    async def _connect(self, socket: WebSocket) -> None:
        name = socket.query_params.get("client", "")[:64] or secrets.token_hex(8)
        refusal = self._refusal(socket.headers, socket.query_params.get("token", ""), origin=True)
        if refusal or (self._is_full and name != self._controller and name not in self._clients):
            await socket.close(1008)
            return
        await socket.accept()
        client = Client(name, socket)
        replaced = self._clients.pop(name, None)
        if replaced:  # the same page, reconnected before the drop was noticed
            replaced.close(4001)
        self._clients[name] = client
        if self._controller is None:
            self._controller, self._last_message_s = name, time.monotonic()
        if name == self._controller:
            self._session.release()  # a reload may take less than a control period
        client.put("status", self._status("controller" if name == self._controller else "spectator"))
        client.put("map", self._map_json)
        if self._frame is not None:
            client.put_frame(self._frame)
        sending = asyncio.create_task(client.send_until_closed())
        try:
            while (received := await socket.receive())["type"] == "websocket.receive":
                self._handle_message(client, received.get("text") or "")
                await asyncio.sleep(0)  # messages that arrive together do not delay a step
        finally:
            sending.cancel()
            if self._clients.get(name) is client:
                del self._clients[name]


def _is_fraction(value: object) -> bool:
    """Return True if a value is a number in [-1, 1]; NaN, ``true`` and lists are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine's loopback interface.

    Raises:
        ConfigError: The port is taken, or needs privileges.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    limit_buffers(listening)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"teleop.port={port}: {error.strerror}. Fix: another port, or teleop.port=0 for a free one"
        ) from error
    return listening
