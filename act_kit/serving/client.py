"""A policy behind a WebSocket as an agent of rollouts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from websockets.exceptions import ConnectionClosed

from act_kit.config.evaluation import ServedConfig
from act_kit.errors import ConfigError, ServingError
from act_kit.rollouts.agents import ActionChunks, Agent
from act_kit.serving.addresses import check_address
from act_kit.serving.sessions import AnswerError, Session, detect_wire, open_websocket
from act_kit.serving.wire import PROMPT_KEYS, STATE_KEYS, Wire, image_keys
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews, RenderSettings, check_cameras
from act_kit.sim.sentences import SENTENCES
from act_kit.sim.tasks import ACTION_DIM

T = TypeVar("T")

RECONNECT_S = 10.0
"""Seconds in which a server that was lost must be reachable again; an evaluation without its policy has no result."""

_RETRY_S = 0.2
_MAX_METADATA = 20_000
"""Maximum length of the server's metadata in the records of an evaluation, in characters."""

_MAX_DEPTH = 20
"""Maximum number of maps and lists of the metadata inside each other."""

_log = logging.getLogger(__name__)


class ServedAgent(Agent):
    """Agent that asks a policy server for actions; see :mod:`act_kit.serving.wire` for the formats.

    Each episode has its own connection. If it is lost, the agent asks once more on a new one; a second loss without an
    answer, a late or an invalid answer ends the episode, which counts as failed. While the server has not yet given any
    valid answer, these are errors: then the address, the mapping or the policy is wrong.

    Attributes:
        num_reconnects: Number of connections that were lost and replaced.
    """

    source = "served"

    def __init__(
        self,
        address: str,
        config: ServedConfig | None = None,
        *,
        n_action_steps: int | None = None,
        token: str = "",
    ) -> None:
        """Connect to ``address`` (``ws://HOST:PORT``), and find the server's format.

        Args:
            address: Address of the server.
            config: What the server is shown, and how long it may take.
            n_action_steps: Actions to execute of each chunk; None for all.
            token: Token that the server expects, if any.

        Raises:
            ConfigError: The address is invalid, ``n_action_steps`` is below 1, or two inputs have the same key.
            ServingError: There is no policy server.
        """
        if n_action_steps is not None and n_action_steps < 1:
            raise ConfigError(
                f"--n-action-steps {n_action_steps}: expected at least 1. Fix: leave it out to execute all."
            )
        self._address, self._token = check_address(address), token
        self._name = address.partition("?")[0]  # a token may follow
        self._config = config or ServedConfig()
        self._n_action_steps = n_action_steps
        self._tasks: dict[int, str] = {}
        self._sessions: dict[int, Session] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | Any = None
        self._chunk_size: int | None = None
        self._latencies_s: dict[str, list[float]] = {}
        self.latencies_s = self._latencies_s
        self.num_reconnects = 0
        if self._config.cameras:
            check_cameras(self._config.cameras)
            size_px = self._config.size_px
            settings = RenderSettings(height_px=size_px, width_px=size_px, look=self._config.look)
            self.views = CameraViews(cameras=self._config.cameras, settings=settings)
        try:
            self._session_class, metadata = self._run(detect_wire(self._address, token, self._config.timeout_s))
            wire = self._session_class.wire
            self._state_key = self._config.state_key or STATE_KEYS[wire]
            self._prompt_key = self._config.prompt_key or PROMPT_KEYS[wire]
            self._image_keys = self._config.image_keys or image_keys(wire, self._config.cameras)
            _check_keys([self._state_key, self._prompt_key, *self._image_keys], wire)
        except BaseException:
            self.close()
            raise
        self.provenance = {
            "kind": "server",
            "name": self._name,
            "wire": wire,
            "metadata": _recorded(metadata),
            "n_action_steps": n_action_steps,
            "shown": {key: value for key, value in asdict(self._config).items() if key != "timeout_s"},
        }

    def __repr__(self) -> str:
        return f"{self._name}, in the format of {self._session_class.wire}"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sessions": {}, "_loop": None, "_thread": None}  # another process connects anew

    # -- episodes ----------------------------------------------------------------------------------------------------

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Discard the connection of the environment's last episode."""
        self._tasks[row] = init_state.task
        session = self._sessions.pop(row, None)
        if session:
            self._run(_close(session))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Ask for the next actions of all environments at the same time."""
        observations: dict[int, dict[str, Any]] = {}
        for i, row in enumerate(rows.tolist()):
            observations[row] = self._observation(states[i], self._tasks[row], None if images is None else images[i])
        self.num_asked = max(self.num_asked, len(observations))
        answers = self._run(self._ask_all(observations))
        chunks: list[np.ndarray] = []
        failures: dict[int, str] = {}
        for i, row in enumerate(rows.tolist()):
            answer = self._check_length(answers[row])
            if isinstance(answer, AnswerError):
                failures[i] = f"The server {answer}."
            else:
                chunks.append(answer)
        if failures and self._chunk_size is None:
            raise ServingError(f"{self._name}: {next(iter(failures.values()))}")
        for message in dict.fromkeys(failures.values()):
            num = list(failures.values()).count(message)
            _log.warning(f"{num} episode{'s' if num > 1 else ''} failed: {message}")
        for i in failures:
            chunks.insert(i, np.zeros((self._chunk_size or 1, ACTION_DIM)))
        return ActionChunks(actions=np.stack(chunks), failures=failures)

    def _observation(self, state: np.ndarray, task: str, images: np.ndarray | None) -> dict[str, Any]:
        """Return what the server is shown of one environment."""
        observation: dict[str, Any] = {
            self._state_key: state[: self._config.state_dim],
            self._prompt_key: SENTENCES[task] if self._config.prompt == "sentence" else task,
        }
        for key, image in zip(self._image_keys, () if images is None else images, strict=True):
            observation[key] = image
        return observation

    def _check_length(self, answer: np.ndarray | AnswerError) -> np.ndarray | AnswerError:
        """Return the actions to execute; all chunks must have the same number of them."""
        if isinstance(answer, AnswerError):
            return answer
        wanted = self._n_action_steps
        if wanted is not None and len(answer) < wanted:
            return AnswerError(f"sent {len(answer)} actions: expected at least the {wanted} of --n-action-steps")
        chunk = answer[:wanted]
        self._chunk_size = self._chunk_size or len(chunk)
        if len(chunk) != self._chunk_size:
            return AnswerError(
                f"sent {len(chunk)} actions, after chunks of {self._chunk_size}: expected the same number each time. "
                "Fix: --n-action-steps N executes the first N"
            )
        return chunk

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask_all(self, observations: Mapping[int, Mapping[str, Any]]) -> dict[int, np.ndarray | AnswerError]:
        """Return the answers by row; rows that wait when no answer has come for a while get an error."""
        asked: dict[asyncio.Task[np.ndarray], int] = {}
        for row, observation in observations.items():
            asked[asyncio.create_task(self._ask(row, observation))] = row
        answers: dict[int, np.ndarray | AnswerError] = {}
        waiting = set(asked)
        try:
            while waiting:
                timeout_s = self._config.timeout_s
                done, waiting = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers[asked[task]] = task.result()
                    except AnswerError as error:
                        answers[asked[task]] = error
                if not done:
                    late = AnswerError(f"sent no answer for {timeout_s:g} s. Fix: served.timeout_s={2 * timeout_s:g}")
                    answers.update({asked[task]: late for task in waiting})
                    break
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        failed: list[Session] = []
        for row, answer in answers.items():
            if isinstance(answer, AnswerError) and row in self._sessions:
                failed.append(self._sessions.pop(row))
        await _close(*failed)  # a late answer must not meet another observation
        return answers

    async def _ask(self, row: int, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the server's actions; if the connection is lost, ask once more on a new one."""
        for is_last in (False, True):
            try:
                if row not in self._sessions:
                    self._sessions[row] = await self._open_session(self._tasks[row])
                asked_at = time.perf_counter()
                actions = await self._sessions[row].infer(observation)
                self._latencies_s.setdefault(self._tasks[row], []).append(time.perf_counter() - asked_at)
                return actions
            except ConnectionClosed as error:
                self._sessions.pop(row, None)
                if is_last:
                    raise AnswerError("closed the connection twice") from error
                self.num_reconnects += 1
        raise AssertionError  # the loop returns or raises

    async def _open_session(self, task: str) -> Session:
        """Connect for one episode; try for a while, since the server may just restart."""
        deadline = time.monotonic() + min(RECONNECT_S, self._config.timeout_s / 2)
        while True:
            try:
                websocket = await open_websocket(self._address, self._token, self._config.timeout_s)
                break
            except ServingError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_S)
        session = self._session_class(websocket)
        try:
            await session.start(task)
        except BaseException:
            websocket.transport.abort()
            raise
        return session

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread of the connections, which also answers pings between two plans."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="policy server", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: else it would connect again while the connections are closed
            raise

    def close(self) -> None:
        """Close all connections."""
        if self._loop is None:
            return
        sessions, self._sessions = list(self._sessions.values()), {}
        self._run(_close(*sessions))
        self._run(asyncio.sleep(0.01))  # for the sockets of aborted connections
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def __enter__(self) -> ServedAgent:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


async def _close(*sessions: Session) -> None:
    await asyncio.gather(*[session.close() for session in sessions], return_exceptions=True)


def _check_keys(keys: list[str], wire: Wire) -> None:
    """Refuse keys under which one input would replace another; a ``/`` in vla-eval's separates nested maps.

    Raises:
        ConfigError: Two are the same, or one is inside another.
    """
    for key, other in itertools.permutations(keys, 2):
        if key == other or (wire == "vla-eval" and key.startswith(f"{other}/")):
            raise ConfigError(
                f"The server is shown two inputs at '{other}': expected another key for each. Fix: "
                "served.state_key=…, served.prompt_key=… or served.image_keys=[…]"
            )


def _recorded(metadata: object) -> Any:
    """Return what a server says about itself as plain values for JSON, unless it is too long."""
    plain = _plain(metadata, 0)
    return plain if len(repr(plain)) <= _MAX_METADATA else "too long"


def _plain(metadata: object, depth: int) -> Any:
    """Return metadata as plain values; an array as its dtype and shape.

    JSON has no NaN and no infinity: they become texts.
    """
    if depth > _MAX_DEPTH:
        return "too deep"
    if isinstance(metadata, dict):
        return {str(key): _plain(value, depth + 1) for key, value in metadata.items()}
    if isinstance(metadata, list | tuple):
        return [_plain(value, depth + 1) for value in metadata]
    if isinstance(metadata, np.generic):
        return _plain(metadata.item(), depth)
    if isinstance(metadata, np.ndarray):
        return f"{metadata.dtype} {metadata.shape}"
    is_plain = isinstance(metadata, str | int | None) or (isinstance(metadata, float) and math.isfinite(metadata))
    return metadata if is_plain else repr(metadata)
