"""``act serve``: the clients of openpi and of vla-eval are answered with the bits of the policy in process."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from act_kit.config.evaluation import ServedConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, ServingError
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import RolloutPool
from act_kit.serving import server
from act_kit.serving.addresses import is_loopback
from act_kit.serving.client import ServedAgent
from act_kit.serving.server import PolicyServer
from act_kit.serving.wire import Message, hello, pack, unpack
from tests.eval.untrained import untrained_policy
from tests.serving.servers import serving_policy
from tests.serving.test_client import assert_same, draw


@contextmanager
def open_client(address: str, **options: Any) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    """Connect as openpi's ``WebsocketClientPolicy`` does; yield the connection and the metadata."""
    with connect(address, compression=None, max_size=None, proxy=None, **options) as websocket:
        data = websocket.recv()
        assert isinstance(data, bytes)
        yield websocket, unpack(data, 2**30)


def ask(websocket: ClientConnection, observation: object) -> Any:
    """Send an observation in openpi's format, and return the answer."""
    websocket.send(pack(observation, "openpi"))
    data = websocket.recv()
    return data if isinstance(data, str) else unpack(data, 2**30)


def states_of(store: EpisodeStore, num: int) -> np.ndarray:
    return store.steps("state")[:num]


@pytest.mark.parametrize("chunking", [{"n_action_steps": 8}, {"temporal_ensemble": True}])
def test_a_served_policy_acts_as_in_process(tiny_policy: Policy, chunking: dict[str, Any]) -> None:
    policy, states = tiny_policy.with_chunking(**chunking), draw(["reach-v3"], 3)
    with RolloutPool(1) as roll, serving_policy(policy) as address, ServedAgent(address) as agent:
        served = roll(agent, states, stop_at_success=True)
        assert_same(served, roll(PolicyAgent(policy), states, stop_at_success=True))


def test_clients_have_their_own_chunks(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    policy = tiny_policy.with_chunking(temporal_ensemble=True)
    states = states_of(reach_store, 6)
    expected = [policy.act(state) for state in states]
    with serving_policy(policy) as address, open_client(address) as (one, _), open_client(address) as (other, _):
        for state, action in zip(states, expected, strict=True):
            for websocket in (one, other):  # in turn: each is in its own episode
                actions = ask(websocket, {"observation/state": state, "prompt": "anything"})["actions"]
                assert np.array_equal(np.clip(actions, -1, 1), action[None])


def test_vla_evals_client_gets_one_action_for_each_observation(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = states_of(reach_store, 6)
    with serving_policy(tiny_policy) as address, open_client(address) as (websocket, first):
        message = Message.of(first)
        assert message
        assert (message.type, message.payload["protocol_version"]) == ("hello", 1)
        websocket.send(pack(hello({}).fields(), "vla-eval"))
        for _ in range(2):
            websocket.send(pack(Message(type="episode_start", payload={}, seq=2).fields(), "vla-eval"))
            tiny_policy.reset()
            for seq, state in enumerate(states):
                payload = {"state": state, "task_description": "Reach a goal position"}
                websocket.send(pack(Message(type="observation", payload=payload, seq=seq).fields(), "vla-eval"))
                answer = Message.of(unpack(websocket.recv(), 2**30))  # type: ignore[arg-type]
                assert answer
                assert (answer.type, answer.seq) == ("action", seq)
                assert np.array_equal(np.clip(answer.payload["actions"], -1, 1), tiny_policy.act(state))
        websocket.send(pack(Message(type="episode_end", payload={}, seq=8).fields(), "vla-eval"))
        websocket.send(pack(Message(type="observation", payload={}, seq=9).fields(), "vla-eval"))
        answer = Message.of(unpack(websocket.recv(), 2**30))  # type: ignore[arg-type]
        assert answer
        assert (answer.type, answer.seq) == ("error", 9)
        assert "expected the state at 'state'" in answer.payload["error"]


def test_the_prompt_chooses_the_task(reach_store: EpisodeStore, push_store: EpisodeStore) -> None:
    policy = untrained_policy([reach_store, push_store])
    state = states_of(push_store, 1)
    with serving_policy(policy) as address:
        with open_client(address) as (websocket, metadata):
            assert metadata["tasks"] == ["reach-v3", "push-v3"]
            for prompt in ("push-v3", "Push the puck to a goal", "push the puck to a goal."):
                actions = ask(websocket, {"observation": {"state": state[0]}, "prompt": prompt})["actions"]
                assert np.array_equal(actions, policy.predict(state, tasks=["push-v3"])[0, : len(actions)])
        for other in ("open the door", "Open a drawer", None):
            with open_client(address) as (websocket, _):
                answer = ask(websocket, {"observation/state": state[0], "prompt": other})
                assert "reach-v3, push-v3" in answer
                with pytest.raises(ConnectionClosed):
                    websocket.recv()


@pytest.mark.gl
def test_a_policy_on_images_is_served(images_store: EpisodeStore) -> None:
    policy = untrained_policy([images_store], gl_renderer="any")
    images = np.random.default_rng(0).integers(0, 255, (1, 2, 32, 32, 3), dtype=np.uint8)
    state = states_of(images_store, 1)
    config = ServedConfig(cameras=("corner4", "gripperPOV"), size_px=32)
    with serving_policy(policy) as address, ServedAgent(address, config) as agent:
        agent.begin(0, draw(["reach-v3"], 1)[0], 0)
        actions = agent.plan(state, np.array([0]), images).actions
        with open_client(address) as (websocket, metadata):
            observation = {"observation/state": state[0]}
            for key, image in zip(metadata["image_keys"], [images[0, 0], images[0, 1, :16]], strict=True):
                observation[key] = image
            answer = ask(websocket, observation)
    assert answer == "images of (32, 32, 3) and (16, 32, 3): expected 32x32 px of each camera"
    assert np.array_equal(actions, policy.predict(state, images)[:, : actions.shape[1]])


WRONG: dict[str, tuple[object, str]] = {
    "no state": ({"prompt": "x", "image": 1}, "expected the state at 'observation/state'; the observation has prompt"),
    "4 numbers": ({"observation/state": np.zeros(4)}, "a state of 4 numbers"),
    "NaN": ({"observation/state": np.full(39, np.nan)}, "NaN or infinity"),
    "a hidden goal": ({"observation/state": np.zeros(39)}, "hide the goal"),
    "another task": (
        {"observation/state": np.ones(39), "prompt": "push-v3"},
        "names push-v3: expected one of reach-v3",
    ),
    "a ragged state": ({"observation/state": [[1.0], [1.0, 2.0]]}, "the state is not an array"),
    "a list": ([1, 2], "an observation of type list"),
    "an object array": (
        {"observation/state": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [39]}},
        r"an array of dtype '|O'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_observation_is_answered_with_one_line(
    case: str, tiny_policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    observation, message = WRONG[case]
    with serving_policy(tiny_policy) as address:
        with open_client(address) as (websocket, _):
            answer = ask(websocket, observation)
            assert isinstance(answer, str)
            assert message in answer
            assert "\n" not in answer
        with open_client(address) as (websocket, _):  # the server goes on
            assert "actions" in ask(websocket, {"observation/state": np.ones(39)})
    assert caplog.messages == []


def test_who_may_connect(tiny_policy: Policy) -> None:
    with serving_policy(tiny_policy, token="secret") as address:
        for options in ({}, {"additional_headers": {"Authorization": "Api-Key wrong"}}):
            with pytest.raises(InvalidStatus, match="401"), open_client(address, **options):
                pass
        with pytest.raises(ServingError, match=r"HTTP 401. Fix: --token TOKEN"):
            ServedAgent(address)
        for query, options in (
            ("", {"additional_headers": {"Authorization": "Api-Key secret"}}),  # as openpi's client
            ("/?token=secret", {}),  # vla-eval's client sends no headers
        ):
            with open_client(address + query, **options) as (_, metadata):
                assert metadata["tasks"] == ["reach-v3"]
        with ServedAgent(address, token="secret") as agent:
            assert agent.provenance
            assert "secret" not in str(agent.provenance)
    page = {"origin": "http://example.com"}  # as a browser names it
    with (
        serving_policy(tiny_policy) as address,
        pytest.raises(InvalidStatus, match="403"),
        open_client(address, **page),
    ):
        pass
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0")] == [True, True, True, False]


def test_addresses_that_cannot_be_served(tiny_policy: Policy) -> None:
    async def listen(host: str, port: int, token: str = "") -> None:
        async with PolicyServer(tiny_policy, token=token).listen(host, port):
            pass

    def try_to_listen(host: str, port: int, token: str = "") -> None:
        with ThreadPoolExecutor(1) as pool:  # a browser's test may have left an event loop in this thread
            pool.submit(lambda: asyncio.run(listen(host, port, token))).result()

    with pytest.raises(ConfigError, match=r"--host 0.0.0.0 .* expected a token. Fix: --token"):
        try_to_listen("0.0.0.0", 0)
    for host in ("a..b", "[::1]", "192.0.2.1"):
        with pytest.raises(ConfigError, match="Fix: "):
            try_to_listen(host, 0, "secret")
    taken = pytest.raises(ConfigError, match=r"in use. Fix: another port, or --port 0")
    with serving_policy(tiny_policy) as address, taken:
        try_to_listen("127.0.0.1", int(address.rpartition(":")[2]))


def test_a_client_that_leaves_or_floods_ends_only_itself(tiny_policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    with serving_policy(tiny_policy) as address, caplog.at_level(logging.WARNING):
        with open_client(address) as (websocket, _):
            websocket.send(pack({"observation/state": np.ones(39)}, "openpi"))  # and leave
        with open_client(address) as (websocket, _), pytest.raises(ConnectionClosed):
            ask(websocket, bytes(65 * 2**20))
        with open_client(address) as (websocket, _):
            websocket.send("hello")
            assert websocket.recv() == "a text message: expected MessagePack"
        with open_client(address) as (websocket, _):
            assert "actions" in ask(websocket, {"observation/state": np.ones(39)})
    assert caplog.messages == []


def test_a_client_that_never_reads_holds_up_neither_the_others_nor_the_end(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets are full, so the server cannot even announce the end of the connection."""
    monkeypatch.setattr(server, "_CLOSE_S", 0.2)
    observation = pack({"observation/state": np.ones(39)}, "openpi")

    def flood(address: str) -> socket.socket:
        host, _, port = address.removeprefix("ws://").partition(":")
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect((host, int(port)))
        client.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        client.settimeout(1.0)
        frame = b"\x82" + bytes([0x80 | 126]) + struct.pack(">H", len(observation)) + bytes(4) + observation
        with suppress(TimeoutError):
            while True:
                client.sendall(frame)
        return client

    with ExitStack() as stack:
        address = stack.enter_context(serving_policy(tiny_policy))
        with flood(address), open_client(address) as (websocket, _):
            assert "actions" in ask(websocket, {"observation/state": np.ones(39)})
            started_at = time.monotonic()
            stack.close()
            assert time.monotonic() - started_at < 5


STRANGE: tuple[object, ...] = (
    *("abc", {"a": 1}, True, None, b"bytes", 2**64 - 1, [], [[]], np.zeros((39, 39)), np.ones(39, dtype=bool)),
    *(np.float32(1) * np.ones(39, dtype=">f4"), np.ones((1, 39)), ["1"] * 39, [None] * 39),
)


@pytest.mark.parametrize("state", STRANGE)
def test_a_strange_state_is_answered_or_refused_by_name(
    state: object, tiny_policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_policy(tiny_policy) as address, open_client(address) as (websocket, _):
        ask(websocket, {"observation/state": state})
    assert caplog.messages == []  # no exception of the policy


def test_no_client_gets_nan(tiny_policy: Policy) -> None:
    with serving_policy(tiny_policy) as address, open_client(address) as (websocket, _):
        answer = ask(websocket, {"observation/state": np.full(39, 1e37)})
    assert answer == "the policy answers this observation with NaN or infinity: expected a state in meters"


# -- the released packages of the two projects -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")
def test_openpis_client_talks_to_our_server(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    (state,) = states_of(reach_store, 1)
    with serving_policy(tiny_policy, token="secret") as address:
        policy = client.WebsocketClientPolicy(address, api_key="secret")
        assert policy.get_server_metadata()["tasks"] == ["reach-v3"]
        for _ in range(2):
            actions = policy.infer({"observation/state": state, "prompt": "Reach a goal position"})["actions"]
            assert np.array_equal(actions, tiny_policy.predict(state[None])[0, :4])
        policy._ws.close()


def test_vla_evals_client_talks_to_our_server(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    connection = pytest.importorskip("vla_eval.connection")
    states = states_of(reach_store, 6)

    async def run(address: str) -> list[np.ndarray]:
        actions: list[np.ndarray] = []
        async with connection.Connection(f"{address}/?token=secret") as conn:
            assert conn.server_info["model_server"] == "act_kit"
            await conn.start_episode({"task": {"name": "reach-v3"}})
            for state in states:
                answer = await conn.act({"state": state, "task_description": "Reach a goal position"})
                actions.append(np.clip(answer["actions"], -1, 1))
            await conn.end_episode({})
        return actions

    with serving_policy(tiny_policy, token="secret") as address:
        assert np.array_equal(asyncio.run(run(address)), [tiny_policy.act(state) for state in states])


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_vla_evals_server_is_judged(chunk_size: int | None) -> None:
    serve = pytest.importorskip("vla_eval.model_servers.serve")
    predict = pytest.importorskip("vla_eval.model_servers.predict")
    import anyio

    from act_kit.rollouts.agents import ExpertAgent
    from tests.serving.servers import Expert, in_thread

    class ExpertServer(predict.PredictModelServer):  # type: ignore[misc,name-defined]
        expert = Expert()

        def predict(self, obs: dict[str, Any], ctx: Any) -> dict[str, Any]:
            return {"actions": np.repeat(self.expert.infer(obs), chunk_size or 1, axis=0)}

    async def run(on_ready: Any, stop: asyncio.Event) -> None:
        async with anyio.create_task_group() as group:
            port = await group.start(serve.serve_async, ExpertServer(chunk_size=chunk_size), "127.0.0.1", 0)
            on_ready(f"ws://127.0.0.1:{port}")
            await stop.wait()
            group.cancel_scope.cancel()

    states = draw(["reach-v3"], 2)
    with RolloutPool(1) as roll, in_thread(run) as address, ServedAgent(address) as agent:
        assert agent.provenance
        assert (agent.provenance["wire"], agent.provenance["metadata"]["model_server"]) == ("vla-eval", "ExpertServer")
        episodes = roll(agent, states, stop_at_success=True)
        if chunk_size is None:
            assert_same(episodes, roll(ExpertAgent(), states, stop_at_success=True))
    assert all(episode.crash is None and episode.success_once for episode in episodes)
