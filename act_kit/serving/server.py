"""Server of a trained policy for the clients of openpi and of vla-eval, at one address.

The first message to each client is both openpi's metadata and vla-eval's ``hello``, which each client reads without the
other's part. From then on, a client is answered in the format that it sends.
"""

from __future__ import annotations

import asyncio
import errno
import http
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from act_kit.errors import ActKitError, ConfigError, ServingError
from act_kit.policies.chunking import ActionChunker
from act_kit.policies.first_states import FirstStates
from act_kit.policies.inputs import check_images, check_states
from act_kit.policies.policy import Policy
from act_kit.policies.query_blocks import QUERY_BATCH_SIZE
from act_kit.serving.addresses import is_loopback
from act_kit.serving.wire import (
    MAX_OBSERVATION_BYTES,
    PROMPT_KEYS,
    STATE_KEYS,
    Message,
    Wire,
    find,
    hello,
    image_keys,
    pack,
    unpack,
)
from act_kit.sim.sentences import find_tasks
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM

MAX_CLIENTS = 256
"""Maximum number of connected clients."""

_PING_TIMEOUT_S = 600.0
"""Seconds without a pong after which a client counts as gone: one that simulates in its event loop answers late."""

_CLOSE_S = 2.0
"""Seconds to end a connection: a client that no longer reads would hold up the last message for ever."""

_INTERNAL_ERROR = 1011
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Query:
    """An observation that waits for its chunk.

    Attributes:
        state: float64 (1, 39).
        first_state: float64 (1, 39), the first one of the episode.
        task: int64 (1,), index of the task.
        images: uint8 (1, C, H, W, 3), or None.
        chunk: Receives the chunk (K, 4).
    """

    state: np.ndarray
    first_state: np.ndarray
    task: np.ndarray
    images: np.ndarray | None
    chunk: asyncio.Future[np.ndarray]


class _Batcher:
    """Predicts the chunks of all observations that wait, together; a chunk does not depend on the others' bits."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waiting: list[_Query] = []
        self._wake = asyncio.Event()

    async def predict(
        self, state: np.ndarray, first_state: np.ndarray, task: np.ndarray, images: np.ndarray | None
    ) -> np.ndarray:
        """Return the chunk (K, 4) for one observation."""
        chunk = asyncio.get_running_loop().create_future()
        query = _Query(state=state, first_state=first_state, task=task, images=images, chunk=chunk)
        self._waiting.append(query)
        self._wake.set()
        return await query.chunk

    async def run(self) -> None:
        """Predict, until cancelled."""
        size = QUERY_BATCH_SIZE[self._policy.device.type]
        while True:
            await self._wake.wait()
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            if not self._waiting:
                self._wake.clear()
            try:
                chunks = await asyncio.to_thread(self._predict, batch)
            except Exception as error:  # answered as an error; the server goes on
                chunks = [error] * len(batch)
            for query, chunk in zip(batch, chunks, strict=True):
                if query.chunk.done():  # its client has left
                    continue
                if isinstance(chunk, Exception):
                    query.chunk.set_exception(chunk)
                else:
                    query.chunk.set_result(chunk)

    def _predict(self, batch: list[_Query]) -> list[np.ndarray | Exception]:
        states = np.concatenate([query.state for query in batch])
        tasks = np.concatenate([query.task for query in batch])
        first_states = np.concatenate([query.first_state for query in batch])
        images = [query.images for query in batch if query.images is not None]
        return list(self._policy.predict(states, np.concatenate(images) if images else None, tasks, first_states))


class _Client:
    """Connected client, with its own action chunks.

    Attributes:
        wire: Format of its last message.
    """

    wire: Wire = "openpi"

    def __init__(self, policy: Policy, batcher: _Batcher) -> None:
        self._policy = policy
        self._batcher = batcher
        self.reset()

    def reset(self) -> None:
        """Discard the chunks: an episode begins."""
        self._chunker = ActionChunker(self._policy.chunking, self._policy.chunk_size, ACTION_DIM)
        self._first_states = FirstStates()
        self._queue: list[np.ndarray] = []

    async def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next actions (N, 4), before clipping.

        Raises:
            ActKitError: The observation is not what the policy was trained on.
        """
        policy = self._policy
        state = find(observation, STATE_KEYS[self.wire])
        if state is None and self.wire == "vla-eval":
            state = observation.get("states")  # as some benchmarks of vla-eval name it
        if state is None:
            given = ", ".join(str(key)[:40] for key in list(observation)[:8]) or "nothing"
            raise ServingError(f"expected the state at '{STATE_KEYS[self.wire]}'; the observation has {given}")
        state = _as_array(state, "the state")
        if state.shape == (4,):
            raise ServingError(f"a state of 4 numbers: expected the {STATE_DIM} of Meta-World's observation")
        recognizes, fixed = policy.recognizes_task, 0 if len(policy.tasks) == 1 else None
        task = None if recognizes else self._find_task(observation.get(PROMPT_KEYS[self.wire]))
        named = None if task is None else [task]
        states, tasks = check_states(state[None], named, policy.metadata, fixed, recognizes_task=recognizes)
        images = None
        if policy.views:
            keys = image_keys(self.wire, policy.views.cameras)
            found = [find(observation, key) for key in keys]
            missing = [key for key, image in zip(keys, found, strict=True) if image is None]
            if missing:
                raise ServingError(f"expected an image of {policy.views.settings} px at '{missing[0]}'")
            images = check_images(_stack_images(found, f"{policy.views.settings}")[None], 1, policy.views)
        row = np.zeros(1, dtype=np.int64)
        chunk = await self._batcher.predict(states, self._first_states.of(row, states), tasks, images)
        if not np.isfinite(chunk).all():
            raise ServingError("the policy answers this observation with NaN or infinity: expected a state in meters")
        actions: np.ndarray = self._chunker.plan(chunk[None], row)[0]
        return actions

    async def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action (4,); the policy is queried when its last actions are executed."""
        if not self._queue:
            self._queue = list(await self.plan(observation))
        return self._queue.pop(0)

    def _find_task(self, prompt: object) -> str | None:
        """Return the policy's task that a prompt names, or None without a prompt.

        Raises:
            ServingError: It names none, or several.
        """
        tasks = self._policy.tasks
        if prompt is None or prompt == "":
            return None
        named = find_tasks(prompt) if isinstance(prompt, str) else []
        known = [task for task in tasks if task in named]
        if len(known) == 1:
            return known[0]
        if len(tasks) == 1 and not named:  # any other words for its only task
            return None
        raise ServingError(
            f"the prompt {str(prompt)[:80]!r} names {' and '.join(known or named) or 'no task'}: expected one of "
            f"{', '.join(tasks)}, by name or by its sentence"
        )


class PolicyServer:
    """Server of one policy. Every connection has its own action chunks, so clients do not affect each other."""

    def __init__(self, policy: Policy, *, token: str = "") -> None:
        """Serve ``policy`` to clients that know ``token``; "" for all."""
        self._policy = policy
        self._token = token
        self._batcher = _Batcher(policy)
        self._connections: set[ServerConnection] = set()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says about its policy."""
        policy = self._policy
        views = policy.views
        cameras = views.cameras if views else ()
        return {
            "policy": f"act_kit, {', '.join(policy.tasks)}, step {policy.metadata.step}",
            "weights": policy.weights_hash,
            "tasks": list(policy.tasks),
            "recognizes_task": policy.recognizes_task,
            "action_dim": ACTION_DIM,
            "n_action_steps": policy.chunker.actions_per_query,
            "state_dim": STATE_DIM,
            "cameras": list(cameras),
            "image_keys": image_keys("openpi", cameras),
            "image_size": [views.settings.height_px, views.settings.width_px] if views else [],
        }

    @asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncGenerator[Server]:
        """Serve on an address until the end of the block; port 0 is a free one.

        Raises:
            ConfigError: The address cannot be used, or is not this machine's own and there is no token.
        """
        if not self._token and not is_loopback(host):
            raise ConfigError(
                f"--host {host} serves the policy to other machines: expected a token. Fix: --token "
                f"{secrets.token_hex(12)}"
            )
        try:
            server = await serve(
                self._handle,
                host,
                port,
                process_request=self._check_request,
                origins=[None],  # no pages: a browser names the page that connects
                compression=None,
                max_size=MAX_OBSERVATION_BYTES,
                max_queue=1,  # clients wait for their answers; more would only take memory
                ping_timeout=_PING_TIMEOUT_S,
                close_timeout=1.0,
                logger=_quiet(),
            )
        except (OSError, UnicodeError) as error:
            reason, fix = str(error), "an address of this machine, such as --host 127.0.0.1 or --host ::1"
            if isinstance(error, OSError):
                reason = error.strerror or reason
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    fix = "another port, or --port 0 for a free one"
            raise ConfigError(f"--host {host} --port {port}: {reason}. Fix: {fix}") from error
        predicting = asyncio.create_task(self._batcher.run())
        try:
            yield server
        finally:
            server.close()
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await server.wait_closed()
            except TimeoutError:
                for websocket in self._connections:
                    websocket.transport.abort()
                await server.wait_closed()
            predicting.cancel()

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer requests for the state of the server, and refuse a client without the token."""
        path = urlsplit(request.path).path
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == "/health":
            return connection.respond(http.HTTPStatus.OK, '{"status": "ok"}\n')
        header = request.headers.get("Authorization", "")
        given = header.removeprefix("Api-Key ") or parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        if self._token and not secrets.compare_digest(given.encode(), self._token.encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "The token is missing or wrong.\n")
        if len(self._connections) >= MAX_CLIENTS:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are connected.\n")
        return None

    async def _handle(self, websocket: ServerConnection) -> None:
        """Serve one client until it leaves."""
        self._connections.add(websocket)
        client = _Client(self._policy, self._batcher)
        greeting = hello({"model_server": "act_kit", "capabilities": {}, "observation_params": {"send_state": True}})
        try:
            await _send(websocket, pack({**self.metadata, **greeting.fields()}, "openpi"))
            async for data in websocket:
                started_at = time.monotonic()
                if isinstance(data, str):
                    raise ServingError("a text message: expected MessagePack")
                received = unpack(data, MAX_OBSERVATION_BYTES)
                message = Message.of(received)
                if message is not None:
                    await self._answer_vla_eval(websocket, client, message)
                else:
                    await self._answer_openpi(websocket, client, received, started_at)
        except ConnectionClosed:
            pass
        except Exception as error:  # of one client: the others are served on
            if not isinstance(error, ActKitError):
                _log.exception("The policy failed.")
            text = str(error) if isinstance(error, ActKitError) else f"{type(error).__name__}: {error}"
            await _refuse(websocket, text)
        finally:
            self._connections.remove(websocket)

    async def _answer_openpi(
        self, websocket: ServerConnection, client: _Client, received: object, started_at: float
    ) -> None:
        if not isinstance(received, dict):
            raise ServingError(f"an observation of type {type(received).__name__}: expected a map")
        client.wire = "openpi"
        actions = await client.plan(received)
        timing = {"infer_ms": 1000 * (time.monotonic() - started_at)}
        await _send(websocket, pack({"actions": actions, "server_timing": timing}, "openpi"))

    async def _answer_vla_eval(self, websocket: ServerConnection, client: _Client, message: Message) -> None:
        client.wire = "vla-eval"
        if message.type in ("episode_start", "episode_end"):
            client.reset()
        if message.type != "observation":  # hello was answered before it was sent
            return
        try:
            answer = Message(type="action", payload={"actions": await client.act(message.payload)}, seq=message.seq)
        except ActKitError as error:  # the format reports errors without ending the connection
            answer = Message(type="error", payload={"error": str(error)}, seq=message.seq)
        await _send(websocket, pack(answer.fields(), "vla-eval"))


def _as_array(value: object, name: str) -> np.ndarray:
    """Return a value of an observation as an array.

    Raises:
        ServingError: It is ragged.
    """
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ServingError(f"{name} is not an array: {error}") from error


def _stack_images(values: Sequence[object], size: str) -> np.ndarray:
    """Return the images (C, H, W, 3) of C cameras.

    Raises:
        ServingError: One is not an array, or they have different shapes.
    """
    images = [_as_array(value, "an image") for value in values]
    shapes = dict.fromkeys(image.shape for image in images)
    if len(shapes) > 1:
        raise ServingError(f"images of {' and '.join(map(str, shapes))}: expected {size} px of each camera")
    return np.stack(images)


async def _send(websocket: ServerConnection, data: bytes) -> None:
    """Send a message; end the connection of a client that has not read for as long as a lost one."""
    try:
        async with asyncio.timeout(_PING_TIMEOUT_S):
            await websocket.send(data)
    except TimeoutError:
        websocket.transport.abort()


async def _refuse(websocket: ServerConnection, text: str) -> None:
    """Send an error as openpi's servers do, and end the connection."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await websocket.send(text)
            await websocket.close(_INTERNAL_ERROR)
    except (TimeoutError, ConnectionClosed):
        websocket.transport.abort()


def _quiet() -> logging.Logger:
    """Return a logger that drops what the library logs on peers that do not speak WebSocket."""
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
