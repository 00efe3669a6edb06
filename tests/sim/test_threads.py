"""Several simulators in several threads of one process, and one simulator in two threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metaworld
import numpy as np
import pytest

from act_kit.collection.collect import collect
from act_kit.config.collection import CollectConfig
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


def run_in_threads(function: Callable[..., Any], jobs: Sequence[tuple[object, ...]]) -> list[Any]:
    """Call ``function(*job)`` for all jobs at the same time, each in its own thread."""
    begin = threading.Barrier(len(jobs))

    def run(job: tuple[object, ...]) -> object:
        begin.wait()
        return function(*job)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def episodes(engine: str, init_states: Sequence[InitialState]) -> list[np.ndarray]:
    """Step a simulator of this thread, one action at a time and in a chunk; return states and physics."""
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
def test_simulators_in_threads_are_bit_exact(task: str, engine: str) -> None:
    init_states = InitialStateDistribution(task).sample(2 * NUM_THREADS, seed=0, stream="collect")
    shares = [init_states[begin::NUM_THREADS] for begin in range(NUM_THREADS)]
    together = run_in_threads(episodes, [(engine, share) for share in shares])
    for share, results in zip(shares, together, strict=True):
        alone = episodes("fast", share)
        assert all(np.array_equal(one, other) for one, other in zip(alone, results, strict=True))


def test_vector_simulators_in_threads_are_bit_exact() -> None:
    def run(init_state: InitialState) -> np.ndarray:
        with VectorSimulator(0) as rows:
            rows.reset({0: init_state})
            rows.receive()
            rows.step({0: np.full((40, 4), 0.3)})
            result = rows.receive()[0]
        assert isinstance(result, StepResult)
        return result.state

    init_states = InitialStateDistribution("door-open-v3").sample(NUM_THREADS, seed=0, stream="collect")
    together = run_in_threads(run, [(init_state,) for init_state in init_states])
    assert np.array_equal(together, [run(init_state) for init_state in init_states])


def test_a_simulator_refuses_a_second_thread() -> None:
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


def test_an_episode_can_continue_in_another_thread() -> None:
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
            receiving = pool.submit(rows.receive)
            refused = []
            while not receiving.done():
                try:
                    rows.step({0: np.zeros((1, 4))})
                except InUseError as error:
                    refused.append(str(error))
                time.sleep(0.001)
        assert "make one for each thread" in refused[0]


def test_two_collections_in_two_threads_are_bit_exact(tmp_path: Path) -> None:
    config = compose(CollectConfig, flags={"task": "drawer-open-v3", "n": 6})

    def make(name: str) -> EpisodeStore:
        return collect(config, tmp_path / name, executor=LocalExecutor(1))

    make("alone")
    run_in_threads(make, [("one",), ("two",)])
    alone = contents(tmp_path / "alone")
    assert contents(tmp_path / "one") == alone
    assert contents(tmp_path / "two") == alone


def test_experts_in_threads_restore_the_warning_filters() -> None:
    """In the tests warnings are errors, so an unfiltered warning would end the thread."""
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
    monkeypatch.setattr(metaworld, "_N_GOALS", 5)  # of 50; each goal takes a reset of an environment

    def sample(seed: int) -> list[InitialState]:
        return InitialStateDistribution("reach-v3", "mt1").sample(5, seed=seed, stream="collect")

    one, other = run_in_threads(sample, [(0,), (0,)])
    assert one == other


def render_in_threads(init_states: Sequence[InitialState]) -> tuple[list[object], list[object]]:
    """Render several tasks in threads, and again in one thread, in a process whose environment selects a GL library."""

    def render(init_state: InitialState) -> list[np.ndarray]:
        simulator, frames = Simulator(init_state.task), []
        simulator.reset(init_state)
        for _ in range(5):
            simulator.step_chunk(np.full((5, 4), 0.5))
            frames.append(get_renderer(SETTINGS).draw(simulator, simulator.physics(), ["corner4"]))
        frames.append(render_episode(SETTINGS, ["topview"], init_state, simulator.physics()[None]).images)
        with VectorSimulator(0, views=CameraViews(cameras=("corner",), settings=SETTINGS)) as rows:
            rows.reset({0: init_state})
            result = rows.receive()[0]
        assert isinstance(result, StepResult)
        assert result.images is not None
        return [*frames, result.images]

    together = run_in_threads(render, [(init_state,) for init_state in init_states])
    return together, [render(init_state) for init_state in init_states]


@pytest.mark.e2e
@pytest.mark.gl
def test_images_in_threads_are_bit_exact(gl: Gl) -> None:
    init_states = InitialStateDistribution("drawer-open-v3").sample(3, seed=0, stream="collect")
    init_states += InitialStateDistribution("push-v3").sample(1, seed=0, stream="collect")
    with LocalExecutor(1, gl.environment) as executor:
        ((together, alone),) = executor.map(render_in_threads, [(init_states,)])
    for actual, expected in zip(together, alone, strict=True):
        for images, expected_images in zip(actual, expected, strict=True):  # type: ignore[call-overload]
            assert np.array_equal(images, expected_images)
