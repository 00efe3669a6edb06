"""Vector simulators: rows are independent and equal to single simulators."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from act_kit.errors import WorkerError
from act_kit.sim.engine import StepBatch
from act_kit.sim.fast import FastEngine
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, Gl, RenderSettings
from act_kit.sim.simulator import Simulator
from act_kit.sim.vector import SimulationFailure, StepResult, VectorSimulator

VIEWS = CameraViews(cameras=("corner4", "gripperPOV"), settings=RenderSettings(height_px=32, width_px=32))
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 6, 4)).astype(np.float32)


def receive_all(rows: VectorSimulator, num: int) -> dict[int, StepResult | SimulationFailure]:
    results: dict[int, StepResult | SimulationFailure] = {}
    while len(results) < num:
        results |= rows.receive()
    return results


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_rows_are_independent_simulators(num_workers: int, engine: str) -> None:
    init_states = InitialStateDistribution("push-v3").sample(3, seed=0, stream="collect")
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 6, 4)).astype(np.float32)
    with VectorSimulator(num_workers, engine=engine) as rows:
        rows.reset(dict(enumerate(init_states)))
        resets = receive_all(rows, 3)
        rows.step({0: actions[0]})
        rows.step({1: actions[1], 2: actions[2]})
        results = receive_all(rows, 3)
        assert rows.receive() == {}
        assert rows.seconds["simulating"] > 0
    for i, init_state in enumerate(init_states):
        alone = Simulator("push-v3")
        reset, result = resets[i], results[i]
        assert isinstance(reset, StepResult)
        assert isinstance(result, StepResult)
        assert result.step_batch is not None
        assert np.array_equal(reset.state, alone.reset(init_state))
        assert np.array_equal(result.step_batch.state, alone.step_chunk(actions[i]).state)
        assert (result.distance, result.images) == (alone.distance, None)


def run_episodes(rows: VectorSimulator, init_states: dict[int, InitialState]) -> dict[InitialState, list[StepResult]]:
    """Run a short episode in each of the rows at the same time; return all results of each episode."""
    results: dict[InitialState, list[StepResult]] = {init_state: [] for init_state in init_states.values()}

    def receive() -> None:
        for row, result in receive_all(rows, len(init_states)).items():
            assert isinstance(result, StepResult)
            results[init_states[row]].append(result)

    rows.reset(init_states)
    receive()
    for chunk in ACTIONS:
        rows.step(dict.fromkeys(init_states, chunk))
        receive()
    return results


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_row_can_be_reset_to_any_task(num_workers: int, engine: str) -> None:
    """Both tasks move bodies of the model, which the simulators of a process and task share."""
    doors = InitialStateDistribution("door-open-v3").sample(2, seed=0, stream="collect")
    levers = InitialStateDistribution("lever-pull-v3").sample(2, seed=0, stream="collect")
    rounds = [
        {0: doors[0], 1: levers[0], 2: levers[1]},
        {0: levers[0], 1: doors[0], 2: doors[1]},
        {0: doors[0]},
    ]
    with VectorSimulator(num_workers, engine=engine) as rows:
        for init_states in rounds:
            for init_state, (reset, *steps) in run_episodes(rows, init_states).items():
                alone = Simulator(init_state.task)
                assert np.array_equal(reset.state, alone.reset(init_state))
                for step, chunk in zip(steps, ACTIONS, strict=True):
                    assert step.step_batch is not None
                    assert np.array_equal(step.step_batch.state, alone.step_chunk(chunk).state)
                    assert step.distance == alone.distance


@pytest.mark.e2e
@pytest.mark.gl
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_images_do_not_depend_on_other_tasks_of_the_process(gl: Gl, engine: str) -> None:
    doors = InitialStateDistribution("door-open-v3").sample(2, seed=0, stream="collect")
    pushes = InitialStateDistribution("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator(1, engine=engine, views=VIEWS) as rows:
        mixed = run_episodes(rows, {0: doors[0], 1: pushes[0], 2: doors[1]})
        mixed |= run_episodes(rows, {0: pushes[1], 1: doors[0]})
    for init_states in (doors, pushes):
        with VectorSimulator(1, views=VIEWS) as rows:
            for init_state in init_states:
                alone = run_episodes(rows, {0: init_state})[init_state]
                for result, mixed_result in zip(alone, mixed[init_state], strict=True):
                    assert result.images is not None
                    assert mixed_result.images is not None
                    assert result.images.shape == (2, 32, 32, 3)
                    assert np.array_equal(result.images, mixed_result.images)


class BreakingInitialState(InitialState):
    """Initial state whose steps raise an exception in any process."""

    def check_is_of(self, task: str) -> None:
        super().check_is_of(task)
        original = FastEngine.step

        def step(engine: FastEngine, actions: np.ndarray, *, rewards: bool, physics: bool) -> StepBatch:
            if engine._rand_vec is not None and np.array_equal(engine._rand_vec, self.array):
                raise RuntimeError("unstable")
            return original(engine, actions, rewards=rewards, physics=physics)

        FastEngine.step = step  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_failed_simulation_does_not_affect_other_rows(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastEngine, "step", FastEngine.step)  # restored after the test in this process
    init_states = InitialStateDistribution("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator(num_workers) as rows:
        rows.reset({0: BreakingInitialState(init_states[0].task, init_states[0].rand_vec), 1: init_states[1]})
        receive_all(rows, 2)
        rows.step({0: np.zeros((2, 4)), 1: np.zeros((2, 4))})
        results = receive_all(rows, 2)
        assert isinstance(results[0], SimulationFailure)
        assert isinstance(results[1], StepResult)
        rows.reset({0: init_states[0]})
        again = receive_all(rows, 1)[0]
        assert isinstance(again, StepResult)
        assert np.isfinite(again.state).all()


def test_large_messages_in_both_directions_do_not_block() -> None:
    """The messages exceed the buffer of a pipe, and the second is sent before the first result is received."""
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    with VectorSimulator(2) as rows:
        rows.reset(dict.fromkeys(range(64), init_state))
        receive_all(rows, 64)
        chunk = np.zeros((200, 4), dtype=np.float32)
        for group in range(2):
            rows.step({row: chunk for row in range(64) if row // 2 % 2 == group})
        results = receive_all(rows, 64)
    assert all(isinstance(result, StepResult) and len(result.step_batch or ()) == 200 for result in results.values())


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import sys\n"
        "from act_kit.workers import Pool\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    print(Pool(1).submit(os.getpid).result(), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_a_worker_that_dies_raises_a_worker_error() -> None:
    init_states = InitialStateDistribution("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator(2) as rows:
        rows.reset(dict(enumerate(init_states)))
        receive_all(rows, 2)
        rows._workers[1][0].kill()

        def step() -> None:
            rows.step({0: np.zeros((2, 4)), 1: np.zeros((2, 4))})
            receive_all(rows, 2)

        with pytest.raises(WorkerError, match=r"died while simulating .* fewer --workers"):
            step()
