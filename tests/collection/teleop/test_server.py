"""Who may connect, who holds the controls, and that nothing moves by itself: spoken to as a page would speak."""

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

from act_kit.collection.teleop import server
from act_kit.sim.render import Gl
from benchmarks.teleop import TOKEN, Served, serve, wait_until

pytestmark = pytest.mark.gl

UP: dict[str, Any] = {"type": "input", "right": 0, "away": 0, "up": 1, "slow": False}
STAY: dict[str, Any] = {**UP, "up": 0}


@pytest.fixture
def served(gl: Gl, tmp_path: Path) -> Iterator[Served]:
    with serve(gl, tmp_path / "data") as served:
        yield served


def connect(served: Served, client: str = "one", *, token: str = TOKEN, origin: str | None = None) -> ClientConnection:
    uri = f"ws://{served.host}/ws?token={token}&client={client}"
    return connect_socket(uri, origin=origin or f"http://{served.host}", max_queue=None)


def status_of(page: ClientConnection) -> dict[str, Any]:
    """Return what a page is told next."""
    page.socket.settimeout(None)
    while True:
        received = page.recv(timeout=10)
        if isinstance(received, str) and (message := json.loads(received))["type"] == "status":
            newer: dict[str, Any] = message
            return newer


def say(page: ClientConnection, message: dict[str, Any], seconds: float = 0.0) -> None:
    """Send a message, again and again for some time, as a page does while a key is held."""
    end = time.monotonic() + seconds
    page.send(json.dumps(message))
    while time.monotonic() < end:
        time.sleep(0.05)
        page.send(json.dumps(message))


def begin(served: Served, page: ClientConnection) -> None:
    say(page, STAY)
    say(page, UP, 0.5)
    assert served.steps


def command(served: Served, page: ClientConnection, name: str) -> None:
    say(page, {"type": "command", "name": name, "attempt": served.session.attempt})


@pytest.mark.parametrize(
    ("token", "origin", "path"),
    [
        ("wrong", None, "/ws"), ("", None, "/ws"), (TOKEN, "http://evil.example", "/ws"),
        (TOKEN, "https://127.0.0.1", "/ws"),
    ],
)  # fmt: skip
def test_strangers_cannot_connect(served: Served, token: str, origin: str | None, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(served, token=token, origin=origin)
    assert refused.value.response.status_code == 403


def test_the_page_is_shown_to_who_has_the_token_and_asks_this_machine(served: Served) -> None:
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
    code, says = get("?token=guess")
    assert (code, "open the whole address" in says) == (403, True)
    code, says = get(f"?token={TOKEN}", Host="rebound.example:8765")
    assert (code, "this machine only" in says) == (403, True)


@pytest.mark.e2e
def test_the_arm_stops_when_the_page_falls_silent_closes_or_lets_go(served: Served) -> None:
    def stands() -> bool:
        time.sleep(server.SILENCE_S + 0.15)
        before, physics = served.steps, served.session.physics()
        time.sleep(0.5)
        return served.steps == before and np.array_equal(served.session.physics(), physics)

    with connect(served) as page:
        begin(served, page)
        assert stands(), "silence"
        say(page, UP, 0.3)
        say(page, {"type": "release"})
        assert stands(), "the focus was lost"
        say(page, UP, 0.3)
        at = served.steps
    assert stands(), "closed in the middle of an episode"
    with connect(served) as page:
        assert status_of(page)["role"] == "controller"
        assert served.steps >= at, "nothing is lost"
        assert stands(), "back, but nothing pressed"
        say(page, UP, 0.3)
        assert served.steps > at, "and goes on where it was"


def test_one_page_steers_and_the_others_watch(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(served, "one") as one, connect(served, "two") as two:
        assert (status_of(one)["role"], status_of(two)["role"]) == ("controller", "spectator")
        say(two, STAY)
        say(two, UP, 0.3)
        command(served, two, "skip")
        say(two, {"type": "take"})
        time.sleep(0.2)
        assert (served.steps, served.session.num_discarded) == (0, 0), "who watches changes nothing"
        assert isinstance(_next_frame(two), bytes), "but sees it"
        monkeypatch.setattr(server, "RESERVED_S", 0.2)
        one.close()
        wait_until(lambda: status_of(two)["free"], "the controls to be free")
        assert status_of(two)["role"] == "spectator", "they are taken, not given"
        say(two, {"type": "take"})
        wait_until(lambda: status_of(two)["role"] == "controller", "the controls")
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


def test_the_same_page_again_replaces_the_one_whose_connection_dropped(served: Served) -> None:
    with connect(served, "one") as before, connect(served, "one") as now:
        assert status_of(now)["role"] == "controller"
        with pytest.raises(ConnectionClosed, match="4001"):
            _read_on(before)
        begin(served, now)


def test_late_and_senseless_messages_do_no_harm(served: Served) -> None:
    with connect(served) as page:
        begin(served, page)
        late = {"type": "command", "name": "discard", "attempt": served.session.attempt - 1}
        nonsense: list[Any] = [
            late, [], 3, {"type": "input"}, {**UP, "up": "much"}, {**UP, "up": 1e400}, {**UP, "slow": 1},
            {"type": "command", "name": "explode", "attempt": served.session.attempt}, {"type": "command", "name": 1},
            {"type": "take"},
        ]  # fmt: skip
        for message in nonsense:
            page.send(json.dumps(message))
        page.send("{")
        page.send(b"\x00\x01")
        with connect(served) as page:
            begin(served, page)
            assert status_of(page)["attempt"] == 1
            command(served, page, "keep")
            wait_until(lambda: "only successes are kept" in status_of(page)["says"], "the refusal")
            command(served, page, "discard")
            wait_until(lambda: status_of(page)["discarded"] == 1, "the next start")
            assert served.steps == 0
