"""Invalid data and slow peers: at most one log line, no traceback, and steps continue at their rate."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from act_kit.collection.teleop import connections, server
from act_kit.sim.render import Gl
from tests.collection.teleop.serving import TOKEN, Served, serve, unread_page, wait_until
from tests.collection.teleop.test_server import UP, begin, command, connect, send, status_of

pytestmark = pytest.mark.gl

INVALID: list[Any] = [
    None,
    True,
    "1",
    "",
    [],
    [1],
    [[1, 0, 0]],
    [[1, 0, 0]] * 3,
    {},
    {"a": 1},
    2,
    -1.01,
    1e308,
    -1e400,
    float("nan"),
    float("inf"),
    10**400,
    "\ud800",
    "x" * 1500,
]


@pytest.fixture
def served(
    gl: Gl, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[Served]:
    """Serve a session, and check what was printed and logged afterwards."""
    with serve(gl, tmp_path / "data", n=3) as served:
        yield served
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed + caplog.text
    assert len(printed.splitlines()) + len(caplog.records) <= 1, printed + caplog.text


def request_bytes(served: Served, request: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes and return the response until the connection ends."""
    host, port = served.host.split(":")
    response = b""
    with socket.create_connection((host, int(port)), timeout=timeout_s) as peer, contextlib.suppress(ConnectionError):
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        while received := peer.recv(65536):
            response += received
    return response


def get(served: Served, path: str = f"/?token={TOKEN}") -> bytes:
    return request_bytes(served, f"GET {path} HTTP/1.1\r\nHost: {served.host}\r\nConnection: close\r\n\r\n".encode())


def can_steer(served: Served, page: ClientConnection) -> bool:
    """Return True if the arm moves when it is steered."""
    before = served.steps
    send(page, UP, 0.5)
    return served.steps > before


def invalid_messages(attempt: int) -> Iterator[dict[str, Any]]:
    """Yield each message with each field replaced by each value, without the field, and with another field."""
    messages: list[dict[str, Any]] = [
        UP,
        {"type": "release"},
        {"type": "take"},
        {"type": "command", "name": "gripper", "attempt": attempt},
    ]
    for message in messages:
        for key in message:
            yield {name: value for name, value in message.items() if name != key}
            for value in INVALID:
                yield {**message, key: value}
        yield {**message, "more": INVALID[3]}


def test_messages_with_any_content_leave_a_valid_episode(served: Served) -> None:
    with connect(served) as page:
        begin(served, page)
        for message in invalid_messages(served.session.attempt):
            with contextlib.suppress(ConnectionClosed):
                page.send(json.dumps(message))
            time.sleep(0.01)
        for text in ("{", "[" * 2000, '{"a":' * 300, "", "NaN", "1" * 2000, '"\\ud800"'):
            page.send(text)
        for data in (b"", b"\x00", b"\xff" * 100):
            page.send(data)
        status_of(page)
        assert can_steer(served, page)
    episode = served.session.recorder.episode()
    assert episode.action.shape == (len(episode.action), 4)
    assert np.abs(episode.action).max() <= 1
    assert np.abs(episode.action[:, :3]).max() <= served.session.config.teleop.speed + 1e-6


def frame(opcode: int, payload: bytes, *, masked: bool = True, fin: bool = True) -> bytes:
    head = bytes([opcode | 0x80 * fin])
    length = len(payload)
    head += bytes([length | 0x80 * masked]) if length < 126 else bytes([126 | 0x80 * masked]) + length.to_bytes(2)
    return head + bytes(4 * masked) + payload


@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"\xff\xfe"),
        frame(1, b"x" * 5000),
        frame(1, b"{}", masked=False),
        frame(3, b""),
        frame(11, b""),
        frame(8, b"\x00"),
        frame(8, b"\x03\xe8\xff"),
        frame(9, b"x" * 200),
        frame(0, b"x"),
        frame(1, b"{", fin=False) + frame(1, b"}"),
        frame(1, b"", fin=False) + frame(0, b"", fin=False) * 500,
        b"\xff" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(13),
)
def test_invalid_frames_end_only_their_own_connection(served: Served, data: bytes) -> None:
    with connect(served) as page, unread_page(served, "invalid") as peer:
        begin(served, page)
        peer.sendall(data)
        assert can_steer(served, page)


HOSTS = [
    "[",
    "[::1",
    "]:80",
    "127.0.0.1:x",
    "127.0.0.1:99999999",
    "@127.0.0.1",
    "a@127.0.0.1",
    "127.0.0.1.",
    "[::1]x",
    "127.0.0.1/",
    "//",
    ":",
    " ",
    "\xff\xfe",
    "\u0661",
    "127.0.0.1,evil",
    "%31",
    "x" * 5000,
    "127.1",
    "0",
]


@pytest.mark.parametrize("upgrade", ["", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"])
def test_a_host_that_is_not_this_machine_is_refused(served: Served, upgrade: str) -> None:
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" if upgrade else ""
    path = "/ws" if upgrade else "/"
    for host in HOSTS:
        request = f"GET {path}?token={TOKEN} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n{upgrade}{key}\r\n"
        status = request_bytes(served, request.encode("utf-8"))[:12]
        assert status in (b"HTTP/1.1 400", b"HTTP/1.1 403", b""), (host, status)
    assert get(served)[:12] == b"HTTP/1.1 200"


def test_origins_other_than_the_page_itself_are_refused(served: Served) -> None:
    port = served.host.split(":")[1]
    for origin in (
        "null",
        "",
        "http://127.0.0.1",
        f"http://localhost:{port}",
        f"http://{served.host}/",
        "file://",
        f"http://{served.host}.evil",
        f"http://{served.host}@evil",
        f"https://{served.host}",
    ):
        with pytest.raises(InvalidStatus, match="403"):
            connect(served, origin=origin or " ")


def requests(host: str) -> Iterator[bytes]:
    """Yield requests that no browser makes."""
    line, head = b"GET / HTTP/1.1\r\n", f"Host: {host}\r\n".encode()
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    yield from (
        b"\r\n" * 100,
        b"\x16\x03\x01\x02\x00",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
    )
    yield from (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\xc3 / HTTP/1.1\r\n\r\n",
    )
    for method, path in itertools.product((b"GET", b"HEAD", b"POST", b"TRACE", b"CONNECT", b"X"), (b"/", b"/ws", b"*")):
        yield method + b" " + path + b" HTTP/1.1\r\n" + head + b"\r\n"
    for path in (
        b"//",
        b"/../..",
        b"/%",
        b"/%ff%fe",
        b"/%00",
        b"/ws/",
        b"/?token=%ff",
        b"/?" + b"a&" * 3000,
        b"/\xc3",
        b"/docs",
        b"http://evil/",
        b"/" + b"x" * 9000,
        b"/" + b"x" * 70000,
    ):
        yield b"GET " + path + b" HTTP/1.1\r\n" + head + b"\r\n"
        yield b"GET " + path + b" HTTP/1.1\r\n" + head + upgrade + b"\r\n"
    for more in (
        b"X: \xff\xfe\r\n",
        b"X\xc3: y\r\n",
        b"X: " + b"y" * 9000 + b"\r\n",
        b"X: y\r\n" * 200,
        b"X\r\n",
        head,
        b"Content-Length: -1\r\n",
        b"Content-Length: 9\r\nContent-Length: 8\r\n",
        b"X-Forwarded-For: [\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Cookie: " + b"c" * 4000 + b"\r\n",
    ):
        yield line + head + more + b"\r\nzz"
        yield b"GET /ws?token=x HTTP/1.1\r\n" + head + upgrade + more + b"\r\nzz"
        yield b"POST / HTTP/1.1\r\n" + head + more + b"\r\nzz\r\n"
    yield (line + head + b"\r\n") * 50


def test_invalid_requests_are_answered_or_ended(served: Served) -> None:
    for request in requests(served.host):
        response = request_bytes(served, request)
        statuses = (b"HTTP/1.1 4", b"HTTP/1.1 5", b"HTTP/1.1 1")
        assert not response or response[:10] in statuses, (request[:80], response[:80])
        assert b"HTTP/1.1 500" not in response, request[:80]
    assert get(served)[:12] == b"HTTP/1.1 200"


@pytest.mark.e2e
def test_idle_and_slow_connections_end_and_do_not_block_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 2.0)
    host, port = served.host.split(":")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(150)]
        with connect(served) as page:
            assert get(served)[:12] == b"HTTP/1.1 200"
            begin(served, page)
            wait_until(lambda: num_open(peers) <= connections.MAX_REQUESTS, "the oldest to be ended")
            end = time.monotonic() + 3
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    peers[-1].send(b"G")
                time.sleep(0.2)
            assert num_open(peers) == 0
            assert can_steer(served, page)


def num_open(peers: list[socket.socket]) -> int:
    """Return the number of connections that the server has not ended."""
    return sum(map(is_open, peers))


def is_open(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@pytest.mark.e2e
def test_spectators_that_do_not_read_are_disconnected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALLED_S", 3.0)
    with contextlib.ExitStack() as stack, connect(served) as page:
        begin(served, page)
        for i in range(10):
            stack.enter_context(unread_page(served, f"unread{i}"))
        wait_until(lambda: len(served.teleop._clients) == 11, "the pages")
        end = time.monotonic() + 30
        while len(served.teleop._clients) > 1 and time.monotonic() < end:
            send(page, UP, 0.5)
            command(served, page, "restart")
        assert list(served.teleop._clients) == ["one"]


def test_a_page_that_stopped_reading_can_be_reloaded(served: Served) -> None:
    with unread_page(served, "one"):
        with connect(served, "two") as other:
            for _ in range(40):  # fill the buffers of the page that does not read
                status_of(other)
        with connect(served, "one") as page:
            assert status_of(page)["role"] == "controller"
            begin(served, page)


def test_the_number_of_pages_is_limited_and_the_controller_can_reconnect(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_PAGES", 3)
    with connect(served, "one") as page, connect(served, "two"), connect(served, "three"):
        wait_until(lambda: len(served.teleop._clients) == 3, "the pages")
        with pytest.raises(InvalidStatus, match="403"):
            connect(served, "four")
        assert b"3 pages are open already" in get(served)
        page.close()
        wait_until(lambda: "one" not in served.teleop._clients, "the page to be gone")
        assert get(served)[:12] == b"HTTP/1.1 200"
        with connect(served, "four"), connect(served, "one") as page:
            begin(served, page)


def test_spectators_take_turns(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SPECTATORS_PER_TICK", 2)
    with contextlib.ExitStack() as stack, connect(served) as page:
        pages = [stack.enter_context(connect(served, f"s{i}")) for i in range(5)]
        begin(served, page)
        step = served.steps
        for spectator in pages:
            while status_of(spectator)["step"] < step:
                pass


def test_a_page_that_floods_the_server_is_disconnected(served: Served) -> None:
    with connect(served, "one") as page, connect(served, "flood") as flood:
        begin(served, page)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100_000):
                flood.send("")
        assert flood.close_code == 1006
        assert can_steer(served, page)


def test_library_logs_are_limited_to_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.error")
    with connections.quiet_logs():
        for _ in range(5):
            try:
                raise KeyError("text\nmore")
            except KeyError:
                log.exception("Exception in ASGI application\n")
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info) == (r"Exception in ASGI application (KeyError: 'text\nmore')", None)
