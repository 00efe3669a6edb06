"""Teleoperation server: access, control, and when the arm stops, tested with messages like those of a page."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket
from websockets.typing import Origin

from act_kit.collection.teleop import server
from act_kit.sim.render import Gl
from tests.collection.teleop.serving import TOKEN, Served, serve, wait_until

pytestmark = pytest.mark.gl

UP: dict[str, Any] = {"type": "input", "right": 0, "away": 0, "up": 1, "slow": False}
STAY: dict[str, Any] = {**UP, "up": 0}


@pytest.fixture
def served(gl: Gl, tmp_path: Path) -> Iterator[Served]:
    with serve(gl, tmp_path / "data") as served:
        yield served


def connect(served: Served, client: str = "one", *, token: str = TOKEN, origin: str | None = None) -> ClientConnection:
    uri = f"ws://{served.host}/ws?token={token}&client={client}"
    return connect_socket(uri, origin=Origin(origin or f"http://{served.host}"), max_queue=None)


def status_of(page: ClientConnection) -> dict[str, Any]:
    """Return the next status that a page receives."""
    page.socket.settimeout(None)
    while True:
        received = page.recv(timeout=10)
        if isinstance(received, str) and (message := json.loads(received))["type"] == "status":
            status: dict[str, Any] = message
            return status


def send(page: ClientConnection, message: dict[str, Any], seconds: float = 0.0) -> None:
    """Send a message repeatedly for some seconds, as a page does while a key is held."""
    end = time.monotonic() + seconds
    page.send(json.dumps(message))
    while time.monotonic() < end:
        time.sleep(0.05)
        page.send(json.dumps(message))


def begin(served: Served, page: ClientConnection) -> None:
    send(page, STAY)
    send(page, UP, 0.5)
    assert served.steps


def command(served: Served, page: ClientConnection, name: str) -> None:
    send(page, {"type": "command", "name": name, "attempt": served.session.attempt})


@pytest.mark.parametrize(
    ("token", "origin"),
    [
        ("wrong", None),
        ("", None),
        (TOKEN, "http://evil.example"),
        (TOKEN, "https://127.0.0.1"),
    ],
)
def test_a_wrong_token_or_origin_is_refused(served: Served, token: str, origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(served, token=token, origin=origin)
    assert refused.value.response.status_code == 403


def test_the_page_requires_the_token_and_a_local_host(served: Served) -> None:
    def get(query: str, **headers: str) -> tuple[int, str]:
        try:
            request = urllib.request.Request(f"http://{served.host}/{query}", headers=headers)
            with urllib.request.urlopen(request) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert get(f"?token={TOKEN}")[0] == 200
    code, text = get("?token=guess")
    assert (code, "open the whole address" in text) == (403, True)
    code, text = get(f"?token={TOKEN}", Host="rebound.example:8765")
    assert (code, "this machine only" in text) == (403, True)


@pytest.mark.e2e
def test_the_arm_stops_when_the_page_is_silent_closed_or_released(served: Served) -> None:
    def is_stopped() -> bool:
        time.sleep(server.INPUT_TIMEOUT_S + 0.15)
        before, physics = served.steps, served.session.simulator.physics()
        time.sleep(0.5)
        return served.steps == before and np.array_equal(served.session.simulator.physics(), physics)

    with connect(served) as page:
        begin(served, page)
        assert is_stopped(), "silence"
        send(page, UP, 0.3)
        send(page, {"type": "release"})
        assert is_stopped(), "the focus was lost"
        send(page, UP, 0.3)
        at = served.steps
    assert is_stopped(), "closed in the middle of an episode"
    with connect(served) as page:
        assert status_of(page)["role"] == "controller"
        assert served.steps >= at, "no step is lost"
        assert is_stopped(), "reconnected without input"
        send(page, UP, 0.3)
        assert served.steps > at, "the episode continues"


def test_one_page_steers_and_the_others_watch(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(served, "one") as one, connect(served, "two") as two:
        assert (status_of(one)["role"], status_of(two)["role"]) == ("controller", "spectator")
        send(two, STAY)
        send(two, UP, 0.3)
        command(served, two, "skip")
        send(two, {"type": "take"})
        time.sleep(0.2)
        assert (served.steps, served.session.num_discarded) == (0, 0), "a spectator changes nothing"
        assert isinstance(_next_frame(two), bytes), "a spectator receives images"
        monkeypatch.setattr(server, "RESERVATION_S", 0.2)
        one.close()
        wait_until(lambda: status_of(two)["free"], "control to be free")
        assert status_of(two)["role"] == "spectator", "control must be requested"
        send(two, {"type": "take"})
        wait_until(lambda: status_of(two)["role"] == "controller", "control")
        begin(served, two)
        with connect(served, "one") as one:
            assert status_of(one)["role"] == "spectator"


def _next_frame(page: ClientConnection) -> bytes | None:
    for _ in range(200):
        received = page.recv(timeout=10)
        if isinstance(received, bytes):
            assert received[:3] == b"\xff\xd8\xff", "a JPEG"
            return received
    return None


def _read_on(page: ClientConnection) -> None:
    while True:
        page.recv(timeout=10)


def test_a_reconnected_page_replaces_its_dropped_connection(served: Served) -> None:
    with connect(served, "one") as before, connect(served, "one") as now:
        assert status_of(now)["role"] == "controller"
        with pytest.raises(ConnectionClosed, match="4001"):
            _read_on(before)
        begin(served, now)


def test_late_and_invalid_messages_have_no_effect(served: Served) -> None:
    with connect(served) as page:
        begin(served, page)
        late = {"type": "command", "name": "discard", "attempt": served.session.attempt - 1}
        invalid: list[Any] = [
            late,
            [],
            3,
            {"type": "input"},
            {**UP, "up": "much"},
            {**UP, "up": 1e400},
            {**UP, "slow": 1},
            {"type": "command", "name": "explode", "attempt": served.session.attempt},
            {"type": "command", "name": 1},
            {"type": "take"},
        ]
        for message in invalid:
            page.send(json.dumps(message))
        page.send("{")
        page.send(b"\x00\x01")
        with connect(served) as page:
            begin(served, page)
            assert status_of(page)["attempt"] == 1
            command(served, page, "keep")
            wait_until(lambda: "only successes are kept" in status_of(page)["says"], "the refusal")
            command(served, page, "discard")
            wait_until(lambda: status_of(page)["discarded"] == 1, "the next initial state")
            assert served.steps == 0
