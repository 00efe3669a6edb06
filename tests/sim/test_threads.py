"""Several simulators in several threads of one process, and one that two threads want."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import metaworld
import numpy as np
import pytest

from act_kit.collection.collect import collect
from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import InUseError
from act_kit.executors import LocalExecutor
from act_kit.overrides import compose
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.render import Gl, RenderSettings, Views, get_renderer, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import Start, StartLaw
from act_kit.sim.vector import Answer, VectorSimulator
from tests.conftest import contents

TASKS_THAT_MOVE_BODIES = ["drawer-open-v3", "door-lock-v3", "faucet-open-v3", "lever-pull-v3"]
SETTINGS = RenderSettings(height_px=32, width_px=32)
NUM_THREADS = 4


def run_in_threads(function: Callable[..., object], jobs: Sequence[tuple[object, ...]]) -> list[object]:
    """Call ``function(*job)`` in as many threads at once, which all begin together."""
    begin = threading.Barrier(len(jobs))

    def run(job: tuple[object, ...]) -> object:
        begin.wait()
        return function(*job)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def episodes(engine: str, starts: Sequence[Start]) -> list[np.ndarray]:
    """Run the expert in a simulator of this thread's, singly and in chunks; return states and physics."""
    simulator, results = Simulator(starts[0].task, engine), []
    expert = ScriptedExpert(starts[0].task)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    for start in starts:
        state = simulator.reset(start)
        for _ in range(15):
            state = simulator.step_chunk(expert.act(state)[None], rewards=True).state[-1]
        results += [simulator.step_chunk(actions).state, simulator.physics()]
    return results


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("task", TASKS_THAT_MOVE_BODIES)
def test_threads_get_what_one_thread_gets(task: str, engine: str) -> None:
    starts = StartLaw(task).sample(2 * NUM_THREADS, seed=0, stream="collect")
    shares = [starts[begin::NUM_THREADS] for begin in range(NUM_THREADS)]
    together = run_in_threads(episodes, [(engine, share) for share in shares])
    for share, results in zip(shares, together, strict=True):
        alone = episodes("fast", share)
        assert all(np.array_equal(one, other) for one, other in zip(alone, results, strict=True))  # type: ignore[call-overload]


def test_vector_simulators_in_threads() -> None:
    def run(start: Start) -> np.ndarray:
        with VectorSimulator(0) as rows:
            rows.reset({0: start})
            rows.receive()
            rows.step({0: np.full((40, 4), 0.3)})
            answer = rows.receive()[0]
        assert isinstance(answer, Answer)
        return answer.state

    starts = StartLaw("door-open-v3").sample(NUM_THREADS, seed=0, stream="collect")
    together = run_in_threads(run, [(start,) for start in starts])
    assert np.array_equal(together, [run(start) for start in starts])


def test_one_simulator_refuses_a_second_thread() -> None:
    (start,) = StartLaw("reach-v3").sample(1, seed=0, stream="collect")
    simulator = Simulator("reach-v3")
    refused: list[InUseError] = []

    def use() -> None:
        for _ in range(20):
            try:
                simulator.reset(start)
                simulator.step_chunk(np.zeros((50, 4)))
            except InUseError as error:
                refused.append(error)

    run_in_threads(use, [()] * 2)
    assert "make one for each thread" in str(refused[0])
    simulator.reset(start)


def test_an_episode_may_go_on_in_another_thread() -> None:
    (start,) = StartLaw("reach-v3").sample(1, seed=0, stream="collect")
    simulator, alone = Simulator("reach-v3"), Simulator("reach-v3")
    simulator.reset(start)
    alone.reset(start)
    with ThreadPoolExecutor(1) as pool:
        segment = pool.submit(simulator.step_chunk, np.ones((5, 4))).result()
    assert np.array_equal(segment.state, alone.step_chunk(np.ones((5, 4))).state)


def test_a_vector_simulator_refuses_a_second_thread() -> None:
    starts = StartLaw("reach-v3").sample(8, seed=0, stream="collect")
    with VectorSimulator(0) as rows:
        rows.reset(dict(enumerate(starts)))
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(rows.receive)
            refused = []
            while not answers.done():
                try:
                    rows.step({0: np.zeros((1, 4))})
                except InUseError as error:
                    refused.append(str(error))
                time.sleep(0.001)
        assert "make one for each thread" in refused[0]


def test_two_collections_in_two_threads_are_those_of_one(tmp_path: Path) -> None:
    config = compose("collect", CollectConfig, flags={"task": "drawer-open-v3", "n": 6})

    def make(name: str) -> EpisodeStore:
        return collect(config, tmp_path / name, executor=LocalExecutor(1))

    make("alone")
    run_in_threads(make, [("one",), ("two",)])
    alone = contents(tmp_path / "alone")
    assert contents(tmp_path / "one") == alone
    assert contents(tmp_path / "two") == alone


def test_experts_in_threads_leave_warnings_as_they_were() -> None:
    """Where warnings are errors, as here, one that gets through ends the thread."""
    import warnings

    (start,) = StartLaw("pick-place-v3").sample(1, seed=0, stream="collect")
    state = Simulator("pick-place-v3").reset(start)
    before = list(warnings.filters)

    def act() -> None:
        expert = ScriptedExpert("pick-place-v3")
        for _ in range(200):
            expert.act(state)

    run_in_threads(act, [()] * NUM_THREADS)
    assert list(warnings.filters) == before


def test_metaworlds_goals_of_one_seed_are_the_same_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "_N_GOALS", 5)  # of 50, each of which it resets an environment for

    def draw(seed: int) -> list[Start]:
        return StartLaw("reach-v3", "tasks50").sample(5, seed=seed, stream="collect")

    one, other = run_in_threads(draw, [(0,), (0,)])
    assert one == other


def draw_in_threads(starts: Sequence[Start]) -> tuple[list[object], list[object]]:
    """Draw moving bodies and stepping simulators in threads, and again in one; for a process with a GL library."""

    def draw(start: Start) -> list[np.ndarray]:
        simulator, frames = Simulator(start.task), []
        simulator.reset(start)
        for _ in range(5):
            simulator.step_chunk(np.full((5, 4), 0.5))
            frames.append(get_renderer(SETTINGS).draw(simulator, simulator.physics(), ["corner4"]))
        frames.append(render_episode(SETTINGS, ["topview"], start, simulator.physics()[None]).images)
        with VectorSimulator(0, views=Views(cameras=("corner",), settings=SETTINGS)) as rows:
            rows.reset({0: start})
            answer = rows.receive()[0]
        assert isinstance(answer, Answer)
        assert answer.images is not None
        return [*frames, answer.images]

    return run_in_threads(draw, [(start,) for start in starts]), [draw(start) for start in starts]


@pytest.mark.e2e
@pytest.mark.gl
def test_pictures_in_threads_are_those_of_one(gl: Gl) -> None:
    starts = StartLaw("drawer-open-v3").sample(3, seed=0, stream="collect")
    starts += StartLaw("push-v3").sample(1, seed=0, stream="collect")
    with LocalExecutor(1, gl.environment) as executor:
        ((together, alone),) = executor.map(draw_in_threads, [(starts,)])
    for ours, theirs in zip(together, alone, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))  # type: ignore[call-overload]
