"""Connections to the page's server, whoever makes them: how many, how long, how much, and what is logged of them.

Whatever a peer sends or leaves unread ends its own connection at most, without a traceback, and never delays a step.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_REQUESTS = 64
"""HTTP connections at a time. One more ends the oldest, so that idle ones never keep the operator's page out."""
REQUEST_S = 10.0
"""Seconds that an HTTP connection lasts, from the first byte or none to the answer. A page takes milliseconds."""
STALLED_S = 5.0
"""Seconds that a page may leave what it was sent unread before it is disconnected. An image is due every 0.05."""
MAX_BYTES_PER_S = 32 * 1024
"""From one page. Steering takes 2 KiB a second, so ten seconds of it that a network held back still pass."""
MAX_MESSAGE_BYTES = 2048
"""Of one message from a page; the longest that it sends has 100."""
_KERNEL_BYTES = 64 * 1024
"""Buffered by the kernel for each direction of a connection: a few images, so that no page sees what is long past,
and a flood arrives in pieces that take milliseconds to read."""

LOG_EVERY_S = 10.0
"""Between two lines that the server's libraries may log, so that no peer can flood the terminal."""


def limit_buffers(listening: socket.socket) -> None:
    """Bound what the kernel buffers for each connection that is accepted from a socket which does not listen yet."""
    for direction in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listening.setsockopt(socket.SOL_SOCKET, direction, _KERNEL_BYTES)


class RequestProtocol(H11Protocol):
    """An HTTP connection that ends after some time, and on whatever is not HTTP."""

    _made_at: float
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made_at = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_S, transport.abort)
        others = [other for other in self.connections if isinstance(other, RequestProtocol)]
        if len(others) > MAX_REQUESTS:
            min(others, key=lambda other: other._made_at).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except Exception:  # h11 and websockets raise many kinds: of what a peer sends, none is worth more than its end
            self.transport.abort()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._deadline.cancel()
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        self.transport.abort()


class PageProtocol(WebSocketsSansIOProtocol):
    """A page's connection, which ends where the page stops reading, or sends too much."""

    _stalled: asyncio.TimerHandle | None = None
    _second = -1
    _num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)  # so that writing pauses as soon as anything is left unread

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stalled:
            self._stalled.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if int(self.loop.time()) != self._second:
            self._second, self._num_bytes = int(self.loop.time()), 0
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
        if self.transport.get_write_buffer_size():  # of a page that does not read, which would be waited for
            self.transport.abort()


class _OneLine(logging.Filter):
    """Cuts a record to one line without its traceback, and lets one pass in :data:`LOG_EVERY_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -LOG_EVERY_S

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._last < LOG_EVERY_S:
            return False
        self._last = time.monotonic()
        line = record.getMessage().strip().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        record.msg = f"{line} ({type(error).__name__}: {error})".partition("\n")[0] if error else line
        record.args, record.exc_info = (), None
        return True


@contextmanager
def quiet_logs() -> Generator[None]:
    """Let the server's libraries log errors only, each in one line, and few."""
    one_line = _OneLine()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "concurrent.futures")]
    for logger in loggers:
        logger.addFilter(one_line)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(one_line)
