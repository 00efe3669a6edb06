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
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from act_kit.collection.teleop.coverage import CoverageMap
from act_kit.collection.teleop.picture import Picture, ground_axes
from act_kit.collection.teleop.session import CLOSED, Session
from act_kit.errors import ActKitError, ConfigError
from act_kit.pages import render_page
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import CONTROL_HZ, HORIZON, get_task

HOST = "127.0.0.1"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""What the page may be asked for as: another name that leads here is somebody else's page (DNS rebinding)."""

SILENCE_S = 0.3
"""Without a word from the page for so long, the arm stops. A page says something 20 times a second."""
RESERVED_S = 10.0
"""How long the controls wait for a page whose connection dropped, before another may take them."""
_MOST_BYTES = 2048
"""Of a message from a page."""
_FAREWELL_S = 1.0

_log = logging.getLogger(__name__)


class _Client:
    """A page: what it has not been sent yet. What is newer replaces what is older."""

    def __init__(self, name: str, socket: WebSocket) -> None:
        self.name = name
        self.socket = socket
        self._texts: dict[str, str] = {}
        self._frame: bytes | None = None
        self._wake = asyncio.Event()

    def put(self, kind: str, text: str) -> None:
        self._texts[kind] = text
        self._wake.set()

    def put_frame(self, frame: bytes) -> None:
        self._frame = frame
        self._wake.set()

    async def send_until_closed(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._wake.wait()
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

    def __init__(self, session: Session, simulator: Simulator, picture: Picture, token: str) -> None:
        self._session = session
        self._picture = picture
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
        self.app = self._make_app()

    # -- time --------------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> None:
        """Serve pages on a listening socket until all is demonstrated, or Ctrl-C."""
        config = uvicorn.Config(
            self.app, log_level="warning", access_log=False, ws="websockets-sansio", ws_max_size=_MOST_BYTES,
            lifespan="off", timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
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
        while self._session.phase != "done":
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
                self._frame = await self._picture.draw(self._session.start, self._session.physics())
            except BrokenProcessPool:
                self._says = "The picture was lost: the process that draws died (out of memory?)."
                await asyncio.sleep(1.0)
                continue
            for client in self._clients.values():
                client.put_frame(self._frame)

    # -- what pages are told -----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        for client in self._clients.values():
            client.put("status", json.dumps(self._status(client)))

    def _status(self, client: _Client) -> dict[str, Any]:
        s = self._session
        rate = self.rate_hz
        return {
            "type": "status",
            "role": "controller" if client.name == self._controller else "spectator",
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

    def _tell_map(self, *clients: _Client) -> None:
        s = self._session
        now = self._coverage.of(s.starts(kept=True), s.starts(kept=False), s.start.array)
        for client in clients or self._clients.values():
            client.put("map", json.dumps({"type": "map", **now}))

    # -- what pages say ----------------------------------------------------------------------------------------------

    def _hear(self, client: _Client, message: dict[str, Any]) -> None:
        """Do what a page asks for; what makes no sense, or is not for it to ask, is left."""
        if message.get("type") == "take" and self._is_free:
            self._controller, self._heard, self._let_go = client.name, time.monotonic(), True
        if client.name != self._controller or self._session.phase == "done":
            return
        match message:
            case {"type": "input", "right": right, "away": away, "up": up, "slow": bool(slow)}:
                wish = np.array([right, away, up], dtype=np.float64)
                if np.isfinite(wish).all():
                    self._heard, self._let_go = time.monotonic(), False
                    self._session.steer(wish @ self._axes, slow=slow)
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
        self._tell_map()

    # -- connections -------------------------------------------------------------------------------------------------

    def _make_app(self) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/", self._page, methods=["GET"], response_class=HTMLResponse)
        app.add_api_websocket_route("/ws", self._connect)
        return app

    def _refusal(self, headers: Any, token: str, *, origin: bool) -> str:
        """Return why a request is not answered, or ""."""
        host = headers.get("host", "")
        if urlsplit(f"//{host}").hostname not in _LOOPBACK:
            return f"This page is served to this machine only, not as {host}."
        if origin and headers.get("origin") != f"http://{host}":
            return "Only this server's own page may connect."
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return "The token is missing or wrong: open the whole address that act collect printed."
        return ""

    async def _page(self, request: Request) -> Response:
        refusal = self._refusal(request.headers, request.query_params.get("token", ""), origin=False)
        if refusal:
            return PlainTextResponse(refusal, status_code=403)
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

    async def _connect(self, socket: WebSocket) -> None:
        if self._refusal(socket.headers, socket.query_params.get("token", ""), origin=True):
            await socket.close(1008)
            return
        await socket.accept()
        client = _Client(socket.query_params.get("client", "")[:64] or secrets.token_hex(8), socket)
        before = self._clients.pop(client.name, None)
        if before:  # the same page again, before it was noticed that its connection had dropped
            with contextlib.suppress(RuntimeError):
                await before.socket.close(4001)
        self._clients[client.name] = client
        if self._controller is None:
            self._controller, self._heard = client.name, time.monotonic()
        client.put("status", json.dumps(self._status(client)))
        self._tell_map(client)
        if self._frame is not None:
            client.put_frame(self._frame)
        sending = asyncio.create_task(client.send_until_closed())
        try:
            while True:
                text = await socket.receive_text()
                with contextlib.suppress(ValueError, TypeError):  # what is no message is left
                    message = json.loads(text)
                    if isinstance(message, dict):
                        self._hear(client, message)
        except WebSocketDisconnect:
            pass
        finally:
            sending.cancel()
            if self._clients.get(client.name) is client:
                del self._clients[client.name]


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine's loopback interface.

    Raises:
        ConfigError: The port is taken, or not ours to take.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(f"teleop.port={port}: {error.strerror}. Take another, or teleop.port=0 for any.") from error
    return listening
