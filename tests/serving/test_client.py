"""A policy behind a WebSocket acts as in process, and no server hangs an evaluation or disturbs another episode."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from act_kit.config.evaluation import EvalConfig, ServedConfig
from act_kit.errors import ActKitError, ConfigError, ServingError
from act_kit.eval.results import EpisodeResult
from act_kit.overrides import compose
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.serving import sessions
from act_kit.serving.client import ServedAgent
from act_kit.serving.wire import MAX_ANSWER_BYTES, pack, unpack
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import RenderSettings
from tests.serving.servers import Expert, Handler, openpi, serving, vla_eval

THREE_TASKS = ("reach-v3", "pick-place-v3", "door-open-v3")
FAST = ServedConfig(timeout_s=0.5)
HOLD = np.zeros((100, 4))
STATES = np.ones((2, 39))


def draw(tasks: Any, num: int) -> list[InitialState]:
    states: list[InitialState] = []
    for task in tasks:
        states += InitialStateDistribution(task).sample(num, seed=1, stream="evaluate")
    return states


def assert_same(served: list[Episode], in_process: list[Episode]) -> None:
    for one, other in zip(served, in_process, strict=True):
        assert one.crash is None
        for name, values in other.steps.items():
            assert np.array_equal(one.steps[name], values), (other.init_state.task, name)
        assert (one.clip_fraction, one.query_steps.tolist()) == (other.clip_fraction, other.query_steps.tolist())


@pytest.mark.parametrize("handler", [openpi, vla_eval])
def test_the_expert_behind_a_server_acts_as_in_process(handler: Callable[[Any], Handler]) -> None:
    states = draw(THREE_TASKS, 3)
    with RolloutPool(1) as roll, serving(handler(Expert().infer)) as address, ServedAgent(address) as agent:
        assert agent.provenance
        assert agent.provenance["wire"] == handler.__name__.replace("_", "-")
        served = roll(agent, states, stop_at_success=True)
        assert_same(served, roll(ExpertAgent(), states, stop_at_success=True))
        assert sum(map(len, agent.latencies_s.values())) == sum(map(len, served))


def counting() -> Handler:
    """Return a server whose answer is the number of observations on the connection, and where the first one was."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send(pack({}, "openpi"))
        num, first = 0, 0.0
        async for data in websocket:
            assert isinstance(data, bytes)
            state = unpack(data, 2**30)["observation/state"]
            num, first = num + 1, state[0] if num == 0 else first
            await asyncio.sleep(0.001 * (state[0] % 7))  # answers arrive in another order
            await websocket.send(pack({"actions": np.array([[first / 1000, num / 1000, 0, 0]])}, "openpi"))

    return handle


def test_no_environment_sees_the_state_of_another_or_of_its_last_episode() -> None:
    (init_state,) = draw(["reach-v3"], 1)
    rows = np.arange(64)
    states = np.repeat(rows[:, None], 39, axis=1).astype(np.float64)
    with serving(counting()) as address, ServedAgent(address) as agent:
        for episode in range(2):
            for row in rows.tolist():
                agent.begin(row, init_state, episode)
            for step in range(1, 4):
                order = np.random.default_rng(step).permutation(64)  # rows wait in any order
                actions = agent.plan(states[order], rows[order], None).actions[:, 0]
                assert (1000 * actions[:, 0]).round().tolist() == rows[order].tolist()
                assert (1000 * actions[:, 1]).round().tolist() == [step] * 64


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_do_not_depend_on_workers(num_workers: int) -> None:
    states = draw(["button-press-v3"], 4)
    with RolloutPool(1) as roll, serving(openpi(Expert().infer)) as address, ServedAgent(address) as agent:
        expected = roll(agent, states, stop_at_success=True)
        with RolloutPool(num_workers, num_envs=2) as other:
            assert_same(other(agent, states, stop_at_success=True), expected)


def test_what_a_server_is_shown() -> None:
    shown: list[dict[str, Any]] = []

    def infer(observation: dict[str, Any]) -> np.ndarray:
        shown.append(observation)
        return HOLD

    (init_state,) = draw(["push-v3"], 1)
    with serving(openpi(infer)) as address:
        options = ["served.state_dim=4", "served.state_key=s", "served.prompt=task", "served.cameras=[corner4]"]
        config = compose(
            EvalConfig, [*options, "served.size_px=16", "served.look=lerobot", "served.timeout_s=5"]
        ).served
        images = np.full((1, 1, 16, 16, 3), 7, dtype=np.uint8)
        with ServedAgent(address, config) as agent:
            assert agent.views
            assert agent.views.settings == RenderSettings(height_px=16, width_px=16, look="lerobot")
            agent.begin(0, init_state, 0)
            agent.plan(STATES[:1], np.array([0]), images)
        with ServedAgent(address) as agent:
            agent.begin(0, init_state, 0)
            agent.plan(STATES[:1], np.array([0]), None)
        names = compose(EvalConfig, ["served.prompt_key=p", "served.cameras=[topview]", "served.image_keys=[i]"]).served
        with ServedAgent(address, names) as agent:
            agent.begin(0, init_state, 0)
            agent.plan(STATES[:1], np.array([0]), images)
    with serving(vla_eval(infer)) as address, ServedAgent(address, config) as agent:
        agent.begin(0, init_state, 0)
        agent.plan(STATES[:1], np.array([0]), images)
    assert list(shown[0]) == ["s", "prompt", "observation/image"]
    assert (shown[0]["s"].shape, shown[0]["prompt"]) == ((4,), "push-v3")
    assert np.array_equal(shown[0]["observation/image"], images[0, 0])
    assert (shown[1]["observation/state"].shape, shown[1]["prompt"]) == ((39,), "Push the puck to a goal")
    assert list(shown[2]) == ["observation/state", "p", "i"]
    assert list(shown[3]) == ["s", "task_description", "images"]
    assert np.array_equal(shown[3]["images"]["corner4"], images[0, 0])


# -- faulty servers ----------------------------------------------------------------------------------------------------


def array_of(dtype: str, data: bytes, shape: list[int]) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


LIES: dict[str, tuple[Any, str]] = {
    "nan": (np.full((2, 4), np.nan), "sent actions with NaN or infinity"),
    "infinity": (np.full((2, 4), np.inf), "sent actions with NaN or infinity"),
    "width": (np.zeros((2, 7)), r"sent actions of shape \(2, 7\): expected \(K, 4\)"),
    "no actions": (np.zeros((0, 4)), r"sent actions of shape \(0, 4\)"),
    "Booleans": (np.zeros((2, 4), dtype=bool), "sent actions of dtype bool"),
    "strings": ({"actions": ["a", "b"]}, "sent actions of dtype <U1"),
    "ragged": ({"actions": [[1.0], [1.0, 2.0]]}, "sent actions that are not an array"),
    "another key": ({"action": HOLD}, "sent no 'actions', but a map with action"),
    "a text": ("Traceback (most recent call last):\n  …\nKeyError: 'state'", "reports an error: KeyError: 'state'"),
    "pickle": (pickle.dumps({"actions": HOLD}), "that is not MessagePack"),
    "object array": ({"actions": array_of("|O", b"\0" * 64, [2, 4])}, r"sent an array of dtype '\|O'"),
    "structured array": ({"actions": array_of("f4,f4", b"\0" * 64, [2, 4])}, "sent an array of dtype 'f4,f4'"),
    "too few bytes": ({"actions": array_of("<f8", b"\0" * 8, [2, 4])}, r"an array of shape \(2, 4\) and dtype float64"),
    "huge shape": ({"actions": array_of("<f8", b"", [2**40, 4])}, "with 0 bytes"),
    "negative shape": ({"actions": array_of("<f8", b"\0" * 64, [-2, -4])}, "without a shape"),
    "too large": (b"\xc6" + struct.pack(">I", MAX_ANSWER_BYTES) + bytes(MAX_ANSWER_BYTES), "more than 16 MiB"),
    "many maps": (b"\xdd" + struct.pack(">I", 2**20) + b"\x80" * 2**20, "more than 100000 maps and lists"),
}


@pytest.mark.parametrize("case", LIES)
def test_an_invalid_answer_is_one_line(case: str, caplog: pytest.LogCaptureFixture) -> None:
    answer, message = LIES[case]
    (init_state,) = draw(["reach-v3"], 1)
    with serving(openpi(lambda observation: answer if observation["observation/state"][0] else HOLD[:2])) as address:
        with ServedAgent(address, FAST) as agent:
            agent.begin(0, init_state, 0)
            with pytest.raises(ServingError, match=message) as error:
                agent.plan(STATES[:1], np.array([0]), None)
            assert "\n" not in str(error.value)
        with ServedAgent(address, FAST) as agent, caplog.at_level(logging.WARNING):
            for row in range(2):
                agent.begin(row, init_state, 0)
            chunks = agent.plan(np.stack([np.zeros(39), np.ones(39)]), np.arange(2), None)
    assert list(chunks.failures) == [1]
    assert np.array_equal(chunks.actions, np.zeros((2, 2, 4)))
    (line,) = caplog.messages
    assert line.startswith("1 episode failed: The server ")


async def announce_a_gigabyte(websocket: ServerConnection) -> None:
    await websocket.send(pack({}, "openpi"))
    await websocket.recv()
    websocket.transport.write(b"\x82\x7f" + struct.pack(">Q", 2**30))
    await websocket.wait_closed()


async def never_answer(websocket: ServerConnection) -> None:
    await websocket.send(pack({}, "openpi"))
    await websocket.wait_closed()


async def hang_up(websocket: ServerConnection) -> None:
    await websocket.send(pack({}, "openpi"))
    await websocket.recv()


async def die(websocket: ServerConnection) -> None:
    await websocket.send(pack({}, "openpi"))
    await websocket.recv()
    websocket.transport.abort()


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (announce_a_gigabyte, "announced a message of more than 16 MiB"),
        (never_answer, r"sent no answer for 0.5 s. Fix: served.timeout_s=1"),
        (hang_up, "closed the connection twice"),
        (die, "closed the connection twice"),
    ],
)
def test_a_server_that_does_not_answer_ends_in_one_line(handler: Handler, message: str) -> None:
    (init_state,) = draw(["reach-v3"], 1)
    started_at = time.monotonic()
    with serving(handler) as address, ServedAgent(address, FAST) as agent:
        agent.begin(0, init_state, 0)
        with pytest.raises(ServingError, match=message):
            agent.plan(STATES[:1], np.array([0]), None)
    assert time.monotonic() - started_at < 4


def stops_reading(wrap: Callable[[Any], Handler]) -> Handler:
    """Return a handler that answers one observation, and then takes nothing from its socket any more."""

    async def handle(websocket: ServerConnection) -> None:
        answering: asyncio.Task[None] = asyncio.create_task(wrap(answer)(websocket))  # type: ignore[arg-type]
        while not answered:
            await asyncio.sleep(0.01)
        websocket.transport.pause_reading()
        await answering

    answered: list[bool] = []

    def answer(observation: dict[str, Any]) -> np.ndarray:
        answered.append(True)
        return HOLD

    return handle


@pytest.mark.parametrize("wrap", [openpi, vla_eval])
def test_a_server_that_stops_reading_holds_up_nothing(
    wrap: Callable[[Any], Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets are full, so not even the end of the episode can be announced."""
    monkeypatch.setattr(sessions, "_SILENCE_S", 0.2)
    monkeypatch.setattr(sessions, "_CLOSE_S", 0.2)
    (init_state,) = draw(["reach-v3"], 1)
    config = ServedConfig(timeout_s=1, cameras=("corner", "corner2", "corner3"), size_px=1024)
    images = np.zeros((1, 3, 1024, 1024, 3), dtype=np.uint8)
    started_at = time.monotonic()
    with serving(stops_reading(wrap)) as address, ServedAgent(address, config) as agent:
        agent.begin(0, init_state, 0)
        assert not agent.plan(STATES[:1], np.array([0]), images).failures
        assert agent.plan(STATES[:1], np.array([0]), images).failures[0].startswith("The server sent no answer for 1 s")
        agent.begin(0, init_state, 1)
    assert time.monotonic() - started_at < 10


def test_metadata_without_a_place_in_json_become_texts() -> None:
    metadata = {"low": -np.inf, "high": [np.nan, 1.5], "scale": np.ones(3)}
    with serving(openpi(lambda observation: HOLD, metadata)) as address, ServedAgent(address) as agent:
        assert agent.provenance
        shown = {"low": "-inf", "high": ["nan", 1.5], "scale": "float64 (3,)"}
        assert agent.provenance["metadata"] == shown


def test_a_second_answer_is_not_taken_for_the_next_one() -> None:
    (init_state,) = draw(["reach-v3"], 1)

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send(pack({}, "openpi"))
        async for _ in websocket:
            for _ in range(2):
                await websocket.send(pack({"actions": HOLD[:2]}, "openpi"))

    with serving(handle) as address, ServedAgent(address) as agent:
        agent.begin(0, init_state, 0)
        assert not agent.plan(STATES[:1], np.array([0]), None).failures
        time.sleep(0.1)
        failures = agent.plan(STATES[:1], np.array([0]), None).failures
    assert failures[0].startswith("The server sent a message before it was asked")


def test_metadata_that_are_nested_too_deeply_are_not_recorded() -> None:
    metadata: Any = 1
    for _ in range(1000):
        metadata = [metadata]
    with serving(openpi(lambda observation: HOLD, {"a": metadata})) as address, ServedAgent(address) as agent:
        assert agent.provenance
        assert len(str(agent.provenance["metadata"])) < 200


def test_an_error_of_a_server_cannot_steer_the_terminal() -> None:
    (init_state,) = draw(["reach-v3"], 1)
    with (
        serving(openpi(lambda observation: "\x1b]0;title\x07\x1b[2J out of memory")) as address,
        ServedAgent(address) as agent,
    ):
        agent.begin(0, init_state, 0)
        with pytest.raises(ServingError, match="out of memory") as error:
            agent.plan(STATES[:1], np.array([0]), None)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "options",
    [
        {"state_key": "prompt"},
        {"prompt_key": "observation/state"},
        {"cameras": ("corner", "corner2"), "image_keys": ("i", "i")},
    ],
)
def test_one_key_holds_one_input(options: dict[str, Any]) -> None:
    with serving(openpi(lambda observation: HOLD)) as address, pytest.raises(ConfigError, match="expected another key"):
        ServedAgent(address, ServedConfig(**options))


def test_no_key_is_inside_another_in_nested_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SILENCE_S", 0.1)
    config = ServedConfig(cameras=("corner",), image_keys=("state/i",))
    with (
        serving(vla_eval(lambda observation: HOLD)) as address,
        pytest.raises(ConfigError, match="two inputs at 'state'"),
    ):
        ServedAgent(address, config)


def test_ctrl_c_ends_the_questions(caplog: pytest.LogCaptureFixture) -> None:
    """Else the questions would go on, on new connections, while the agent is closed."""
    (init_state,) = draw(["reach-v3"], 1)
    started_at = time.monotonic()
    with serving(never_answer) as address, ServedAgent(address) as agent:
        agent.begin(0, init_state, 0)
        timer = threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            agent.plan(STATES[:1], np.array([0]), None)
        agent.close()
        assert agent.num_reconnects == 0
    assert time.monotonic() - started_at < 5
    assert caplog.messages == []  # asyncio names tasks that were never awaited


@pytest.mark.parametrize("n_action_steps", [0, -3])
def test_action_steps_are_at_least_one(n_action_steps: int) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        ServedAgent("ws://localhost:1", n_action_steps=n_action_steps)


async def send_nothing(websocket: ServerConnection) -> None:
    await websocket.wait_closed()


async def refuse(websocket: ServerConnection) -> None:
    await websocket.close()


async def echo(websocket: ServerConnection) -> None:
    async for data in websocket:
        await websocket.send(b"hi" if isinstance(data, bytes) else data)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (send_nothing, "sent nothing for 0.5 s: expected a policy server in the format of openpi or vla-eval"),
        (refuse, "closed the connection"),
        (echo, "answered hello with|that is not MessagePack"),
    ],
)
def test_another_kind_of_server_is_refused(handler: Handler, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SILENCE_S", 0.2)
    with serving(handler) as address, pytest.raises(ServingError, match=message):
        ServedAgent(address, FAST)


def test_no_server_at_all() -> None:
    with serving(refuse) as address:
        pass
    with pytest.raises(ServingError, match=r"There is no policy server at .* Fix: start it, such as act serve RUN"):
        ServedAgent(address, FAST)
    for wrong in ("ws://localhost", "http://localhost:8000", "ws://:8000", "ws://localhost:port"):
        with pytest.raises(ConfigError, match="expected ws://HOST:PORT"):
            ServedAgent(wrong)


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "a b"])
def test_a_host_that_cannot_exist_is_one_line(host: str) -> None:
    with pytest.raises(ActKitError, match=r"There is no policy server at|expected ws://HOST:PORT"):
        ServedAgent(f"ws://{host}:8000", FAST)


def test_a_proxy_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ServingError, match=r"There is no policy server at .*nonsense"):
        ServedAgent("ws://192.0.2.1:8000", FAST)


def test_a_server_at_an_ipv6_address() -> None:
    with serving(openpi(lambda observation: HOLD), host="::1") as address, ServedAgent(address) as agent:
        assert agent.provenance
        assert agent.provenance["name"].startswith("ws://[::1]:")


def test_an_answer_in_fragments_is_read() -> None:
    (init_state,) = draw(["reach-v3"], 1)

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send(pack({}, "openpi"))
        async for _ in websocket:
            await websocket.send(bytes([byte]) for byte in pack({"actions": HOLD[:2]}, "openpi"))

    with serving(handle) as address, ServedAgent(address) as agent:
        agent.begin(0, init_state, 0)
        assert agent.plan(STATES[:1], np.array([0]), None).actions.shape == (1, 2, 4)


def test_a_slow_first_message_of_openpis_server_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SILENCE_S", 0.1)

    async def handle(websocket: ServerConnection) -> None:
        await asyncio.sleep(0.3)
        await websocket.send(pack({"robot": "sawyer"}, "openpi"))
        await websocket.wait_closed()

    with serving(handle) as address, ServedAgent(address) as agent:
        assert agent.provenance
        assert (agent.provenance["wire"], agent.provenance["metadata"]) == ("openpi", {"robot": "sawyer"})


def test_a_lost_connection_is_replaced_once() -> None:
    num_connections = 0

    async def handle(websocket: ServerConnection) -> None:
        nonlocal num_connections
        num_connections += 1
        await websocket.send(pack({}, "openpi"))
        while True:
            await websocket.recv()
            if num_connections == 2:  # the first one asks for the metadata
                websocket.transport.abort()
                return
            await websocket.send(pack({"actions": HOLD}, "openpi"))

    with RolloutPool(1) as roll, serving(handle) as address, ServedAgent(address) as agent:
        (episode,) = roll(agent, draw(["reach-v3"], 1))
        assert (episode.crash, len(episode), agent.num_reconnects) == (None, 500, 1)


def test_an_episode_whose_server_fails_counts_as_failed_by_name() -> None:
    """One of three episodes fails at its second chunk; the others run to the horizon."""
    states = draw(["reach-v3"], 3)
    num_asked = 0

    def infer(observation: dict[str, Any]) -> Any:
        nonlocal num_asked
        is_first = np.array_equal(observation["observation/state"][-3:], states[0].array[-3:])
        num_asked += is_first
        return "RuntimeError: out of memory" if is_first and num_asked == 2 else HOLD

    with RolloutPool(1) as roll, serving(openpi(infer)) as address, ServedAgent(address) as agent:
        episodes = roll(agent, states)
    crash = "The server reports an error: RuntimeError: out of memory."
    assert [episode.crash for episode in episodes] == [crash, None, None]
    assert list(map(len, episodes)) == [100, 500, 500]
    assert [EpisodeResult.of(episode).failure_mode == "crashed" for episode in episodes] == [True, False, False]


def test_a_server_that_is_gone_ends_the_evaluation() -> None:
    (init_state,) = draw(["reach-v3"], 1)
    with ExitStack() as stack:
        agent = stack.enter_context(ServedAgent(stack.enter_context(serving(openpi(lambda observation: HOLD))), FAST))
        agent.begin(0, init_state, 0)
        agent.plan(STATES[:1], np.array([0]), None)
        stack.pop_all().close()
        agent.begin(0, init_state, 1)
        with agent, pytest.raises(ServingError, match="There is no policy server"):
            agent.plan(STATES[:1], np.array([0]), None)


def test_chunks_are_cut_to_the_action_steps_and_have_one_length() -> None:
    lengths = iter([5, 5, 3, 1])
    (init_state,) = draw(["reach-v3"], 1)
    with serving(openpi(lambda observation: HOLD[: next(lengths)])) as address:
        with ServedAgent(address, n_action_steps=4) as agent:
            agent.begin(0, init_state, 0)
            assert agent.plan(STATES[:1], np.array([0]), None).actions.shape == (1, 4, 4)
        with ServedAgent(address) as agent:
            agent.begin(0, init_state, 0)
            assert agent.plan(STATES[:1], np.array([0]), None).actions.shape == (1, 5, 4)
            failures = agent.plan(STATES[:1], np.array([0]), None).failures
    assert failures[0].startswith("The server sent 3 actions, after chunks of 5")
