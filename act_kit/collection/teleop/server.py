"""The page to demonstrate by hand from: who may open it, who holds the controls, and what is sent to whom.

Steps are made at their own rate, whatever a browser or a renderer does. One page at a time holds the controls; if it is
closed, loses the focus or its connection, the arm stops and time stands still until it is back.
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
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.datastructures import Headers
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from act_kit import interrupts
from act_kit.collection.teleop.connections import (
    MAX_MESSAGE_BYTES,
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
"""Hosts that the page may be asked for as: another name that leads here is someone else's page (DNS rebinding)."""

SILENCE_S = 0.3
"""Without a word from the page for so long, the arm stops. A page says something 20 times a second."""
RESERVED_S = 10.0
"""How long the controls wait for a page whose connection dropped, before another may take them."""
MAX_PAGES = 65
"""Pages that are connected at a time: a class watches, and one steers."""
SPECTATORS_A_TICK = 8
"""Spectators that are sent something in one control period; where there are more, they take turns, and see fewer images
a second, because sending takes time of the thread that makes the steps."""
_FAREWELL_S = 1.0

_log = logging.getLogger(__name__)


class _Client:
    """A page: what it has not been sent yet. What is newer replaces what is older."""

    def __init__(self, name: str, socket: WebSocket) -> None:
        self.name = name
        self.socket = socket
        self._texts: dict[str, str] = {}
        self._frame: bytes | None = None
        self.last_frame: bytes | None = None
        self._close_code = 0
        self._wake = asyncio.Event()

    def put(self, kind: str, text: str) -> None:
        self._texts[kind] = text
        self._wake.set()

    def put_frame(self, frame: bytes) -> None:
        self._frame = self.last_frame = frame
        self._wake.set()

    def close(self, code: int) -> None:
        """Close the connection once the page has read what it was sent before; one that does not is disconnected."""
        self._close_code = code
        self._wake.set()

    async def send_until_closed(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._wake.wait()
                if self._close_code:
                    await self.socket.close(self._close_code)
                    return
                self._wake.clear()
                texts, self._texts = self._texts, {}
                frame, self._frame = self._frame, None
                for text in texts.values():
                    await self.socket.send_text(text)
                if frame is not None:
                    await self.socket.send_bytes(frame)


class Teleop:
    """A session and the pages that show it.

    Attributes:
        rate_hz: Steps a second, measured over the last two seconds of steps; NaN before there are any.
    """

    def __init__(self, session: Session, simulator: Simulator, image: ImageWorker, token: str) -> None:
        self._session = session
        self._image = image
        self._token = token
        config = session.config
        self._axes = ground_axes(simulator, config.teleop.cameras[0])
        self._coverage = CoverageMap(get_task(config.task), config.n)
        self._clients: dict[str, _Client] = {}
        self._controller: str | None = None
        self._heard = time.monotonic()
        self._let_go = True
        self._says = ""
        self._steps: deque[float] = deque(maxlen=2 * config.teleop.rate_hz + 1)
        self._changed = asyncio.Event()
        self._changed.set()
        self._frame: bytes | None = None
        self._turn = 0
        self._map = self._draw_map()
        self.app = self._make_app()

    # -- time --------------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> None:
        """Serve pages on a listening socket until all is demonstrated, or Ctrl-C."""
        config = uvicorn.Config(
            self.app,
            http=RequestProtocol,
            ws=PageProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # images are compressed already: it takes a millisecond for nothing
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
        loops = [asyncio.create_task(self._keep_time()), asyncio.create_task(self._draw_forever())]
        try:
            done, _ = await asyncio.wait([serving, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.sleep(_FAREWELL_S)  # for the last message to every page
        finally:
            for task in loops:
                task.cancel()
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    async def _keep_time(self) -> None:
        """Tick at the control rate; late, skip what was missed rather than hurry after it."""
        period = 1 / self._session.config.teleop.rate_hz
        due = time.monotonic()
        while self._session.phase != "done" and not interrupts.interrupted():
            due = max(due + period, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if not self.live:
                self._session.release()
            elif self._session.tick():
                self._steps.append(time.monotonic())
                self._changed.set()
            if self._steps and time.monotonic() - self._steps[-1] > 2 * period:
                self._steps.clear()  # time stood still, which is no slow step
            self._tell()
        self._tell()

    @property
    def live(self) -> bool:
        """Whether a page that holds the controls is there and has the focus."""
        return self._controller in self._clients and not self._let_go and self._silence_s <= SILENCE_S

    @property
    def _silence_s(self) -> float:
        return time.monotonic() - self._heard

    @property
    def _is_free(self) -> bool:
        """Whether a page may take the controls: nobody has them, or who had them has been silent for a while."""
        return self._controller is None or self._silence_s > RESERVED_S

    @property
    def rate_hz(self) -> float:
        num = len(self._steps) - 1
        return num / (self._steps[-1] - self._steps[0]) if num > 0 else math.nan

    async def _draw_forever(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self._frame = await self._image.draw(self._session.init_state, self._session.physics())
            except BrokenProcessPool:
                self._says = "The picture was lost: the process that draws died (out of memory?)."
                await asyncio.sleep(1.0)
                continue
            if self._controller in self._clients:
                self._clients[self._controller].put_frame(self._frame)

    # -- what pages are told -----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the page that steers, and the spectators whose turn it is, where things stand."""
        if self._controller in self._clients:
            self._clients[self._controller].put("status", self._status("controller"))
        spectators = [client for name, client in self._clients.items() if name != self._controller]
        status = self._status("spectator") if spectators else ""
        for i in range(min(SPECTATORS_A_TICK, len(spectators))):
            client = spectators[(self._turn + i) % len(spectators)]
            client.put("status", status)
            if self._frame is not None and self._frame is not client.last_frame:
                client.put_frame(self._frame)
        self._turn += SPECTATORS_A_TICK

    def _status(self, role: str) -> str:
        s = self._session
        rate = self.rate_hz
        status = {
            "type": "status",
            "role": role,
            "free": self._is_free,
            "live": self.live,
            "phase": s.phase,
            "waits": s.waits and s.phase == "running",
            "attempt": s.attempt,
            "kept": s.num_kept,
            "discarded": s.num_discarded,
            "step": s.num_steps,
            "distance": s.distance,
            "succeeds": s.succeeds_now,
            "succeeded": s.succeeded,
            "gripper": "closed" if s.gripper == CLOSED else "open",
            "rate": None if math.isnan(rate) else rate,
            "says": self._says,
        }
        return json.dumps(status)

    def _draw_map(self) -> str:
        s = self._session
        return json.dumps(
            {
                "type": "map",
                **self._coverage.of(s.init_states(kept=True), s.init_states(kept=False), s.init_state.array),
            }
        )

    # -- what pages say ----------------------------------------------------------------------------------------------

    def _hear(self, client: _Client, text: str) -> None:
        """Do what a page asks for; what makes no sense, or is not for it to ask, is left."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if message.get("type") == "take" and self._is_free:
            self._controller, self._heard, self._let_go = client.name, time.monotonic(), True
        if client.name != self._controller or self._session.phase == "done":
            return
        match message:
            case {"type": "input", "right": right, "away": away, "up": up, "slow": bool(slow)}:
                wish = (right, away, up)
                if all(map(_is_share, wish)):
                    self._heard, self._let_go = time.monotonic(), False
                    self._session.steer(np.array(wish, dtype=np.float64) @ self._axes, slow=slow)
            case {"type": "release"}:
                self._heard, self._let_go = time.monotonic(), True
            case {"type": "command", "name": str(name), "attempt": self._session.attempt}:
                self._obey(name)

    def _obey(self, name: str) -> None:
        s = self._session
        commands: dict[str, tuple[Callable[[], None], str]] = {
            "gripper": (s.toggle_gripper, ""),
            "keep": (s.keep, f"Episode {s.num_kept + 1} is kept: it is on disk."),
            "discard": (s.skip, "Discarded. The next start."),
            "restart": (s.restart, "The same start again."),
            "skip": (s.skip, "Left out. The next start."),
        }
        if name not in commands:
            return
        command, says = commands[name]
        try:
            command()
        except ActKitError as error:
            says = str(error)
        except OSError as error:
            says = f"It could not be stored ({error}), and is still here. Make room, and keep it again."
            _log.warning(says)
        self._says = says
        self._changed.set()
        self._map = self._draw_map()
        for client in self._clients.values():
            client.put("map", self._map)

    # -- connections -------------------------------------------------------------------------------------------------

    def _make_app(self) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        app.add_api_route("/", self._page, methods=["GET"], response_class=HTMLResponse)
        app.add_api_websocket_route("/ws", self._connect)
        return app

    def _refusal(self, headers: Headers, token: str, *, origin: bool) -> str:
        """Return why a request is not answered, or ""."""
        host = headers.get("host", "")
        if not _LOOPBACK.fullmatch(host):
            return f"This page is served to this machine only, not as {host[:100]!r}."
        if origin and headers.getlist("origin") != [f"http://{host}"]:
            return "Only this server's own page may connect."
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return "The token is missing or wrong: open the whole address that act collect printed."
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
                "title": f"{config.task}: demonstrating by hand",
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
        refused = self._refusal(socket.headers, socket.query_params.get("token", ""), origin=True)
        if refused or (self._is_full and name != self._controller and name not in self._clients):
            await socket.close(1008)
            return
        await socket.accept()
        client = _Client(name, socket)
        before = self._clients.pop(name, None)
        if before:  # the same page again, before it was noticed that its connection had dropped
            before.close(4001)
        self._clients[name] = client
        if self._controller is None:
            self._controller, self._heard = name, time.monotonic()
        if name == self._controller:
            self._session.release()  # a reload may take less than a control period: nobody saw the page go
        client.put("status", self._status("controller" if name == self._controller else "spectator"))
        client.put("map", self._map)
        if self._frame is not None:
            client.put_frame(self._frame)
        sending = asyncio.create_task(client.send_until_closed())
        try:
            while (received := await socket.receive())["type"] == "websocket.receive":
                self._hear(client, received.get("text") or "")
                await asyncio.sleep(0)  # many that have arrived together do not delay a step
        finally:
            sending.cancel()
            if self._clients.get(name) is client:
                del self._clients[name]


def _is_share(value: object) -> bool:
    """Return whether a value is a number in [-1, 1], which NaN, ``true`` and lists are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine's loopback interface.

    Raises:
        ConfigError: The port is taken, or not ours to take.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    limit_buffers(listening)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(f"teleop.port={port}: {error.strerror}. Take another, or teleop.port=0 for any.") from error
    return listening
