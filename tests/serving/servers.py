"""Policy servers for the tests, in threads of this process: after openpi's, after vla-eval's, and faulty ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from act_kit.policies.policy import Policy
from act_kit.serving.server import PolicyServer
from act_kit.serving.wire import Message, hello, pack, unpack
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.sentences import find_tasks

Handler = Callable[[ServerConnection], Awaitable[None]]
Observation = dict[str, Any]


@contextmanager
def in_thread(run: Callable[[Callable[[str], None], asyncio.Event], Awaitable[None]]) -> Iterator[str]:
    """Run a server in a thread until the end of the block; yield its address."""
    started, addresses = threading.Event(), list[str]()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def on_ready(address: str) -> None:
        addresses.append(address)
        started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run(on_ready, stop)), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def serving(handler: Handler, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve a handler of connections."""

    async def run(on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
        async def handle(websocket: ServerConnection) -> None:
            with suppress(ConnectionClosed):
                await handler(websocket)

        async with serve(handle, host, 0, compression=None, max_size=None, close_timeout=0.1) as server:
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"ws://{shown}:{server.sockets[0].getsockname()[1]}")
            await stop.wait()

    with in_thread(run) as address:
        yield address


@contextmanager
def serving_policy(policy: Policy, token: str = "") -> Iterator[str]:
    """Serve a policy as ``act serve`` does."""

    async def run(on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
        async with PolicyServer(policy, token=token).listen("127.0.0.1", 0) as server:
            on_ready(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await stop.wait()

    with in_thread(run) as address:
        yield address


def openpi(infer: Callable[[Observation], Any], metadata: Observation | None = None) -> Handler:
    """Return a handler after openpi's ``WebsocketPolicyServer``: the metadata first, then an answer to each message."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send(pack(metadata or {}, "openpi"))
        async for data in websocket:
            assert isinstance(data, bytes)
            answer = infer(unpack(data, 2**30))
            answer = (
                {"actions": answer, "server_timing": {"infer_ms": 0.1}} if isinstance(answer, np.ndarray) else answer
            )
            await websocket.send(answer if isinstance(answer, bytes | str) else pack(answer, "openpi"))

    return handle


def vla_eval(infer: Callable[[Observation], np.ndarray]) -> Handler:
    """Return a handler after vla-eval's ``_handle_connection``: the client says hello first."""

    async def handle(websocket: ServerConnection) -> None:
        async for data in websocket:
            assert isinstance(data, bytes)
            message = Message.of(unpack(data, 2**30))
            assert message
            if message.type == "hello":
                await websocket.send(pack(hello({"model_server": "Expert"}).fields(), "vla-eval"))
            elif message.type == "observation":
                payload = {"actions": infer(message.payload)}
                await websocket.send(
                    pack(Message(type="action", payload=payload, seq=message.seq).fields(), "vla-eval")
                )

    return handle


class Expert:
    """The scripted expert as the policy of a server, which learns the task from the prompt."""

    def __init__(self) -> None:
        self._experts: dict[str, ScriptedExpert] = {}

    def infer(self, observation: Observation) -> np.ndarray:
        """Return a chunk of one action, float64 (1, 4)."""
        is_openpi = "prompt" in observation
        (task,) = find_tasks(observation["prompt" if is_openpi else "task_description"])
        if task not in self._experts:
            self._experts[task] = ScriptedExpert(task)
        return self._experts[task].act(observation["observation/state" if is_openpi else "state"])[None]
