"""Sessions of a client with a policy server: one connection for one episode, in openpi's or vla-eval's format.

A server may keep state for each connection, and openpi's format has no message that ends an episode. So every episode
has its own connection, and no environment sees another's state or that of an earlier episode.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)

from act_kit.errors import ServingError
from act_kit.serving.wire import MAX_ANSWER_BYTES, VLA_EVAL_KEYS, Message, Wire, hello, pack, unpack
from act_kit.sim.tasks import ACTION_DIM

_SILENCE_S = 2.0
"""Seconds without a first message after which a server is taken for one of vla-eval's, whose clients speak first."""

_CLOSE_S = 2.0
"""Seconds to end a connection: a server that no longer reads would hold up the last message for ever."""

_MAX_CHUNK = 10_000
_TOO_BIG = 1009
"""Code with which WebSocket connections end that announced too large a message."""


class AnswerError(Exception):
    """An answer that cannot be used; the message continues the sentence "The server …"."""


async def open_websocket(address: str, token: str, timeout_s: float) -> ClientConnection:
    """Connect to a server.

    Raises:
        ServingError: It cannot be reached within ``timeout_s``, is no WebSocket server, or refuses the token.
    """
    host = urlsplit(address).hostname
    try:
        return await connect(
            address,
            additional_headers={"Authorization": f"Api-Key {token}"} if token else None,
            compression=None,
            max_size=MAX_ANSWER_BYTES,
            open_timeout=timeout_s,
            close_timeout=1.0,
            ping_interval=None,  # a server that computes its first actions does not answer pings
            proxy=None if host in ("127.0.0.1", "localhost", "::1") else True,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        fix = " Fix: --token TOKEN" if status in (401, 403) else ""
        raise ServingError(f"The server at {_shown(address)} refuses the connection: HTTP {status}.{fix}") from error
    except (InvalidHandshake, InvalidMessage, EOFError) as error:
        raise ServingError(
            f"The server at {_shown(address)} is not a policy server: it does not speak WebSocket ({error})."
        ) from error
    except (OSError, TimeoutError, InvalidURI, InvalidProxy, UnicodeError, ImportError) as error:
        reason = str(error) or "it does not answer"
        if "Connect call failed" in reason:
            reason = "nothing listens there"
        raise ServingError(
            f"There is no policy server at {_shown(address)}: {reason}. Fix: start it, such as act serve RUN"
        ) from error


def _shown(address: str) -> str:
    """Return an address without the token that may stand in it."""
    return address.partition("?")[0]


class Session(ABC):
    """One episode with a server."""

    wire: Wire

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    @abstractmethod
    async def start(self, task: str) -> None:
        """Begin an episode of a task."""

    @abstractmethod
    async def infer(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the server's next actions (K, 4).

        Raises:
            AnswerError: The answer cannot be used.
            ConnectionClosed: The connection was lost.
        """

    async def close(self) -> None:
        """End the episode and the connection, also one whose server no longer takes part."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._announce_end()
                await self._websocket.close()
        except (TimeoutError, ConnectionClosed):
            self._websocket.transport.abort()

    async def _announce_end(self) -> None:
        """Announce the end of the episode, in a format that has a message for it."""
        return

    async def _receive(self) -> Any:
        """Return the next message.

        Raises:
            AnswerError: It is a text, too large, or invalid.
            ConnectionClosed: The connection was lost.
        """
        try:
            data = await self._websocket.recv()
        except ConnectionClosed as error:
            if error.sent and error.sent.code == _TOO_BIG:
                raise AnswerError(f"announced a message of more than {MAX_ANSWER_BYTES // 2**20} MiB") from error
            raise
        if isinstance(data, str):
            raise AnswerError(f"reports an error: {_last_line(data)}")
        try:
            return unpack(data, MAX_ANSWER_BYTES)
        except ServingError as error:
            raise AnswerError(f"sent {error}") from error


class OpenpiSession(Session):
    """Episode in openpi's format."""

    wire: Wire = "openpi"

    async def receive_metadata(self) -> dict[str, Any]:
        """Return the server's metadata, its first message."""
        metadata = await self._receive()
        if not isinstance(metadata, dict):
            raise AnswerError(f"sent {type(metadata).__name__} as its first message: expected a map")
        if Message.of(metadata) is not None:  # one message for the clients of both formats
            return {key: value for key, value in metadata.items() if key not in VLA_EVAL_KEYS}
        return metadata

    async def start(self, task: str) -> None:
        """Receive the metadata."""
        await self.receive_metadata()

    async def infer(self, observation: Mapping[str, Any]) -> np.ndarray:
        """See :meth:`Session.infer`."""
        await self._check_silence()
        await self._websocket.send(pack(observation, self.wire))
        return read_actions(await self._receive())

    async def _check_silence(self) -> None:
        """Refuse a message that has come before the question: without numbers, it would count as the next answer."""
        try:
            async with asyncio.timeout(0):
                await self._receive()
        except TimeoutError:
            return
        raise AnswerError("sent a message before it was asked: expected one answer to each observation")


class VlaEvalSession(Session):
    """Episode in vla-eval's format."""

    wire: Wire = "vla-eval"

    def __init__(self, websocket: ClientConnection) -> None:
        super().__init__(websocket)
        self._num_sent = 0

    async def greet(self) -> dict[str, Any]:
        """Exchange the first messages; return the server's description of itself."""
        await self._send("hello", hello({"benchmark": "act_kit"}).payload)
        received = await self._receive()
        message = Message.of(received)
        if message is None or message.type != "hello":
            raise AnswerError(f"answered hello with {_described(received)}")
        return message.payload

    async def start(self, task: str) -> None:
        """Announce the episode."""
        await self.greet()
        await self._send("episode_start", {"task": {"name": task}})

    async def infer(self, observation: Mapping[str, Any]) -> np.ndarray:
        """See :meth:`Session.infer`."""
        seq = await self._send("observation", _nested(observation))
        received = await self._receive()
        message = Message.of(received)
        if message is not None and message.type == "error":
            raise AnswerError(f"reports an error: {_last_line(str(message.payload.get('error', message.payload)))}")
        if message is None or message.type != "action":
            raise AnswerError(f"answered an observation with {_described(received)}")
        if message.seq != seq:
            raise AnswerError(f"answered observation {message.seq} instead of {seq}")
        return read_actions(message.payload)

    async def _announce_end(self) -> None:
        await self._send("episode_end", {})

    async def _send(self, kind: str, payload: dict[str, Any]) -> int:
        self._num_sent += 1
        message = Message(type=kind, payload=payload, seq=self._num_sent)
        await self._websocket.send(pack(message.fields(), self.wire))
        return self._num_sent


async def detect_wire(address: str, token: str, timeout_s: float) -> tuple[type[OpenpiSession | VlaEvalSession], Any]:
    """Return the class of a server's sessions, and what the server says about itself.

    A server that sends a message first has openpi's format; one that answers ``hello`` has vla-eval's.

    Raises:
        ServingError: It cannot be reached, or has neither format.
    """
    problem = ""
    for silence_s in (_SILENCE_S, timeout_s):
        websocket = await open_websocket(address, token, timeout_s)
        try:
            try:
                async with asyncio.timeout(silence_s):
                    return OpenpiSession, await OpenpiSession(websocket).receive_metadata()
            except TimeoutError:
                async with asyncio.timeout(timeout_s):
                    return VlaEvalSession, await VlaEvalSession(websocket).greet()
        except TimeoutError:
            problem = f"sent nothing for {timeout_s:g} s"
            break
        except (AnswerError, ConnectionClosed) as error:
            if problem:  # not one of openpi's that is slower than the silence either
                break
            problem = str(error) if isinstance(error, AnswerError) else "closed the connection"
        finally:
            await websocket.close()
    raise ServingError(
        f"The server at {_shown(address)} {problem}: expected a policy server in the format of openpi or vla-eval."
    )


def read_actions(answer: object) -> np.ndarray:
    """Return the actions of an answer, float (K, 4); one action (4,) is a chunk of one.

    Raises:
        AnswerError: There are none, they are not finite numbers, or they have another shape.
    """
    given = answer.get("actions") if isinstance(answer, dict) else None
    if given is None:
        raise AnswerError(f"sent no 'actions', but {_described(answer)}")
    try:
        actions = np.asarray(given)
    except ValueError as error:
        raise AnswerError(f"sent actions that are not an array: {error}") from error
    if actions.dtype.kind not in "fiu":
        raise AnswerError(f"sent actions of dtype {actions.dtype}: expected numbers")
    actions = actions[None] if actions.ndim == 1 else actions
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not 1 <= len(actions) <= _MAX_CHUNK:
        raise AnswerError(f"sent actions of shape {np.shape(given)}: expected (K, {ACTION_DIM})")
    if not np.isfinite(actions).all():
        raise AnswerError("sent actions with NaN or infinity")
    return actions if actions.dtype.kind == "f" else actions.astype(np.float64)


def _nested(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an observation with a map for each ``/`` in its keys, as in vla-eval's ``images``."""
    nested: dict[str, Any] = {}
    for key, value in observation.items():
        *parents, leaf = key.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested


def _last_line(text: str) -> str:
    """Return the last line of a traceback, which names the error, without characters that steer a terminal."""
    return _printable((text.strip().splitlines() or ["(empty)"])[-1][:300])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _described(value: object) -> str:
    """Return a short description of an unexpected value."""
    if isinstance(value, dict):
        names = _printable(", ".join(str(key)[:30] for key in list(value)[:6]))
        return f"a map with {names or 'nothing'}"
    return type(value).__name__
