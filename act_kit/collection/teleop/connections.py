"""Connections to the teleoperation server, with limits on their number, duration, data rate and log lines.

Data that a peer sends or does not read can end its own connection only, without a traceback, and never delays a step.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_REQUESTS = 64
"""Maximum number of HTTP connections. One more ends the oldest, so that idle ones never block the operator's page."""
REQUEST_S = 10.0
"""Maximum duration of an HTTP connection in seconds, from its opening to the response. A page takes milliseconds."""
STALLED_S = 5.0
"""Seconds without reading after which a page is disconnected. An image is sent every 0.05 s."""
MAX_BYTES_PER_S = 32 * 1024
"""Maximum data rate from one page. Steering takes 2 KiB/s, so that ten seconds of it may arrive at once."""
MAX_MESSAGE_BYTES = 2048
"""Maximum size of a message from a page; the longest one that the page sends has 100 bytes."""
_KERNEL_BYTES = 64 * 1024
"""Kernel buffer of each direction of a connection: a few images, so that no page shows outdated ones, and a flood of
messages arrives in parts that take milliseconds to read."""

LOG_EVERY_S = 10.0
"""Minimum time in seconds between two log lines of the server's libraries, so that no peer can flood the terminal."""


def limit_buffers(listening: socket.socket) -> None:
    """Limit the kernel buffers of the connections accepted from a socket that does not listen yet."""
    for direction in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listening.setsockopt(socket.SOL_SOCKET, direction, _KERNEL_BYTES)


class RequestProtocol(H11Protocol):
    """HTTP connection that ends after :data:`REQUEST_S`, and on invalid HTTP."""

    _opened_at: float
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._opened_at = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_S, transport.abort)
        others = [other for other in self.connections if isinstance(other, RequestProtocol)]
        if len(others) > MAX_REQUESTS:
            min(others, key=lambda other: other._opened_at).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except Exception:  # h11 and websockets raise many types on invalid data: each ends the connection
            self.transport.abort()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._deadline.cancel()
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        self.transport.abort()


class PageProtocol(WebSocketsSansIOProtocol):
    """WebSocket connection of a page, which ends if the page stops reading or sends too much."""

    _stall_timer: asyncio.TimerHandle | None = None
    _current_s = -1
    _num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)  # writing pauses as soon as data is unread

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stall_timer:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer:
            self._stall_timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if int(self.loop.time()) != self._current_s:
            self._current_s, self._num_bytes = int(self.loop.time()), 0
        self._num_bytes += len(data)
        if self._num_bytes > MAX_BYTES_PER_S:
            self.transport.abort()
            return
        try:
            super().data_received(data)
        except Exception:  # as above
            self.transport.abort()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.get_write_buffer_size():  # the page does not read: do not wait for it
            self.transport.abort()


class Client:
    """Connected page and its unsent messages, of which a newer one replaces an older one of the same kind."""

    def __init__(self, name: str, socket: WebSocket) -> None:
        self.name = name
        self.socket = socket
        self.last_frame: bytes | None = None
        self._messages: dict[str, str | bytes] = {}
        self._close_code = 0
        self._wake = asyncio.Event()

    def put(self, kind: str, message: str | bytes) -> None:
        self._messages[kind] = message
        self._wake.set()

    def put_frame(self, frame: bytes) -> None:
        self.last_frame = frame
        self.put("frame", frame)

    def close(self, code: int) -> None:
        """Close the connection after the message being sent; a page that does not read it is disconnected."""
        self._close_code = code
        self._wake.set()

    async def send_until_closed(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._wake.wait()
                if self._close_code:
                    await self.socket.close(self._close_code)
                    return
                self._wake.clear()
                messages, self._messages = self._messages, {}
                for message in messages.values():
                    if isinstance(message, str):
                        await self.socket.send_text(message)
                    else:
                        await self.socket.send_bytes(message)


class _OneLineFilter(logging.Filter):
    """Filter that reduces a record to one line without traceback, and passes one per :data:`LOG_EVERY_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s = -LOG_EVERY_S

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._last_s < LOG_EVERY_S:
            return False
        self._last_s = time.monotonic()
        line = record.getMessage().strip().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        record.msg = f"{line} ({type(error).__name__}: {error})".partition("\n")[0] if error else line
        record.args, record.exc_info = (), None
        return True


@contextmanager
def quiet_logs() -> Generator[None]:
    """Limit the logs of the server's libraries to one line per error, and one error per :data:`LOG_EVERY_S`."""
    one_line = _OneLineFilter()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "concurrent.futures")]
    for logger in loggers:
        logger.addFilter(one_line)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(one_line)
