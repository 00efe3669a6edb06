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
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, Gl, RenderSettings, get_renderer, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.vector import StepResult, VectorSimulator
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


def episodes(engine: str, init_states: Sequence[InitialState]) -> list[np.ndarray]:
    """Run the expert in a simulator of this thread's, singly and in chunks; return states and physics."""
    simulator, results = Simulator(init_states[0].task, engine), []
    expert = ScriptedExpert(init_states[0].task)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    for init_state in init_states:
        state = simulator.reset(init_state)
        for _ in range(15):
            state = simulator.step_chunk(expert.act(state)[None], rewards=True).state[-1]
        results += [simulator.step_chunk(actions).state, simulator.physics()]
    return results


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("task", TASKS_THAT_MOVE_BODIES)
def test_threads_get_what_one_thread_gets(task: str, engine: str) -> None:
    init_states = InitialStateDistribution(task).sample(2 * NUM_THREADS, seed=0, stream="collect")
    shares = [init_states[begin::NUM_THREADS] for begin in range(NUM_THREADS)]
    together = run_in_threads(episodes, [(engine, share) for share in shares])
    for share, results in zip(shares, together, strict=True):
        alone = episodes("fast", share)
        assert all(np.array_equal(one, other) for one, other in zip(alone, results, strict=True))  # type: ignore[call-overload]


def test_vector_simulators_in_threads() -> None:
    def run(init_state: InitialState) -> np.ndarray:
        with VectorSimulator(0) as rows:
            rows.reset({0: init_state})
            rows.receive()
            rows.step({0: np.full((40, 4), 0.3)})
            answer = rows.receive()[0]
        assert isinstance(answer, StepResult)
        return answer.state

    init_states = InitialStateDistribution("door-open-v3").sample(NUM_THREADS, seed=0, stream="collect")
    together = run_in_threads(run, [(init_state,) for init_state in init_states])
    assert np.array_equal(together, [run(init_state) for init_state in init_states])


def test_one_simulator_refuses_a_second_thread() -> None:
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    simulator = Simulator("reach-v3")
    refused: list[InUseError] = []

    def use() -> None:
        for _ in range(20):
            try:
                simulator.reset(init_state)
                simulator.step_chunk(np.zeros((50, 4)))
            except InUseError as error:
                refused.append(error)

    run_in_threads(use, [()] * 2)
    assert "make one for each thread" in str(refused[0])
    simulator.reset(init_state)


def test_an_episode_may_go_on_in_another_thread() -> None:
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    simulator, alone = Simulator("reach-v3"), Simulator("reach-v3")
    simulator.reset(init_state)
    alone.reset(init_state)
    with ThreadPoolExecutor(1) as pool:
        step_batch = pool.submit(simulator.step_chunk, np.ones((5, 4))).result()
    assert np.array_equal(step_batch.state, alone.step_chunk(np.ones((5, 4))).state)


def test_a_vector_simulator_refuses_a_second_thread() -> None:
    init_states = InitialStateDistribution("reach-v3").sample(8, seed=0, stream="collect")
    with VectorSimulator(0) as rows:
        rows.reset(dict(enumerate(init_states)))
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

    (init_state,) = InitialStateDistribution("pick-place-v3").sample(1, seed=0, stream="collect")
    state = Simulator("pick-place-v3").reset(init_state)
    before = list(warnings.filters)

    def act() -> None:
        expert = ScriptedExpert("pick-place-v3")
        for _ in range(200):
            expert.act(state)

    run_in_threads(act, [()] * NUM_THREADS)
    assert list(warnings.filters) == before


def test_metaworlds_goals_of_one_seed_are_the_same_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "_N_GOALS", 5)  # of 50, each of which it resets an environment for

    def draw(seed: int) -> list[InitialState]:
        return InitialStateDistribution("reach-v3", "mt1").sample(5, seed=seed, stream="collect")

    one, other = run_in_threads(draw, [(0,), (0,)])
    assert one == other


def draw_in_threads(init_states: Sequence[InitialState]) -> tuple[list[object], list[object]]:
    """Draw moving bodies and stepping simulators in threads, and again in one; for a process with a GL library."""

    def draw(init_state: InitialState) -> list[np.ndarray]:
        simulator, frames = Simulator(init_state.task), []
        simulator.reset(init_state)
        for _ in range(5):
            simulator.step_chunk(np.full((5, 4), 0.5))
            frames.append(get_renderer(SETTINGS).draw(simulator, simulator.physics(), ["corner4"]))
        frames.append(render_episode(SETTINGS, ["topview"], init_state, simulator.physics()[None]).images)
        with VectorSimulator(0, views=CameraViews(cameras=("corner",), settings=SETTINGS)) as rows:
            rows.reset({0: init_state})
            answer = rows.receive()[0]
        assert isinstance(answer, StepResult)
        assert answer.images is not None
        return [*frames, answer.images]

    return run_in_threads(draw, [(init_state,) for init_state in init_states]), [
        draw(init_state) for init_state in init_states
    ]


@pytest.mark.e2e
@pytest.mark.gl
def test_pictures_in_threads_are_those_of_one(gl: Gl) -> None:
    init_states = InitialStateDistribution("drawer-open-v3").sample(3, seed=0, stream="collect")
    init_states += InitialStateDistribution("push-v3").sample(1, seed=0, stream="collect")
    with LocalExecutor(1, gl.environment) as executor:
        ((together, alone),) = executor.map(draw_in_threads, [(init_states,)])
    for ours, theirs in zip(together, alone, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))  # type: ignore[call-overload]
