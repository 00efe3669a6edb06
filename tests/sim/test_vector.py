"""Many simulators at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from act_kit.errors import WorkerError
from act_kit.sim.engine import Segment
from act_kit.sim.fast import FastEngine
from act_kit.sim.render import Gl, RenderSettings, Views
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import Start, StartLaw
from act_kit.sim.vector import Answer, Crash, VectorSimulator

VIEWS = Views(cameras=("corner4", "gripperPOV"), settings=RenderSettings(height_px=32, width_px=32))
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 6, 4)).astype(np.float32)


def receive_all(rows: VectorSimulator, num: int) -> dict[int, Answer | Crash]:
    answers: dict[int, Answer | Crash] = {}
    while len(answers) < num:
        answers |= rows.receive()
    return answers


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_rows_are_simulators_of_their_own(num_workers: int, engine: str) -> None:
    starts = StartLaw("push-v3").sample(3, seed=0, stream="collect")
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 6, 4)).astype(np.float32)
    with VectorSimulator(num_workers, engine=engine) as rows:
        rows.reset(dict(enumerate(starts)))
        resets = receive_all(rows, 3)
        rows.step({0: actions[0]})
        rows.step({1: actions[1], 2: actions[2]})
        answers = receive_all(rows, 3)
        assert rows.receive() == {}
        assert rows.seconds["simulating"] > 0
    for i, start in enumerate(starts):
        alone = Simulator("push-v3")
        reset, answer = resets[i], answers[i]
        assert isinstance(reset, Answer)
        assert isinstance(answer, Answer)
        assert answer.segment is not None
        assert np.array_equal(reset.state, alone.reset(start))
        assert np.array_equal(answer.segment.state, alone.step_chunk(actions[i]).state)
        assert (answer.distance, answer.images) == (alone.distance, None)


def run_episodes(rows: VectorSimulator, starts: dict[int, Start]) -> dict[Start, list[Answer]]:
    """Run a short episode in each of some rows, side by side; return all answers of each."""
    answers: dict[Start, list[Answer]] = {start: [] for start in starts.values()}

    def note() -> None:
        for row, answer in receive_all(rows, len(starts)).items():
            assert isinstance(answer, Answer)
            answers[starts[row]].append(answer)

    rows.reset(starts)
    note()
    for chunk in ACTIONS:
        rows.step(dict.fromkeys(starts, chunk))
        note()
    return answers


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_row_takes_starts_of_any_task(num_workers: int, engine: str) -> None:
    """Both move bodies of the model, which the simulators of a process and task share."""
    doors, levers = (StartLaw(task).sample(2, seed=0, stream="collect") for task in ("door-open-v3", "lever-pull-v3"))
    rounds = [
        {0: doors[0], 1: levers[0], 2: levers[1]}, {0: levers[0], 1: doors[0], 2: doors[1]}, {0: doors[0]},
    ]  # fmt: skip
    with VectorSimulator(num_workers, engine=engine) as rows:
        for starts in rounds:
            for start, (reset, *steps) in run_episodes(rows, starts).items():
                alone = Simulator(start.task)
                assert np.array_equal(reset.state, alone.reset(start))
                for step, chunk in zip(steps, ACTIONS, strict=True):
                    assert step.segment is not None
                    assert np.array_equal(step.segment.state, alone.step_chunk(chunk).state)
                    assert step.distance == alone.distance


@pytest.mark.e2e
@pytest.mark.gl
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_pictures_of_several_tasks_are_those_of_processes_that_drew_one(gl: Gl, engine: str) -> None:
    doors, pushes = (StartLaw(task).sample(2, seed=0, stream="collect") for task in ("door-open-v3", "push-v3"))
    with VectorSimulator(1, engine=engine, views=VIEWS) as rows:
        mixed = run_episodes(rows, {0: doors[0], 1: pushes[0], 2: doors[1]})
        mixed |= run_episodes(rows, {0: pushes[1], 1: doors[0]})
    for starts in (doors, pushes):
        with VectorSimulator(1, views=VIEWS) as rows:
            for start in starts:
                for ours, theirs in zip(run_episodes(rows, {0: start})[start], mixed[start], strict=True):
                    assert ours.images is not None
                    assert theirs.images is not None
                    assert ours.images.shape == (2, 32, 32, 3)
                    assert np.array_equal(ours.images, theirs.images)


class BreakingStart(Start):
    """An initial state from which no step succeeds, in whatever process it is reset to."""

    def check_is_of(self, task: str) -> None:
        super().check_is_of(task)
        original = FastEngine.step

        def step(engine: FastEngine, actions: np.ndarray, *, rewards: bool) -> Segment:
            if engine._rand_vec is not None and np.array_equal(engine._rand_vec, self.array):
                raise RuntimeError("unstable")
            return original(engine, actions, rewards=rewards)

        FastEngine.step = step  # type: ignore[method-assign]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_row_leaves_the_others_alone(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastEngine, "step", FastEngine.step)  # in this process, put it back
    starts = StartLaw("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator(num_workers) as rows:
        rows.reset({0: BreakingStart(starts[0].task, starts[0].rand_vec), 1: starts[1]})
        receive_all(rows, 2)
        rows.step({0: np.zeros((2, 4)), 1: np.zeros((2, 4))})
        answers = receive_all(rows, 2)
        assert isinstance(answers[0], Crash)
        assert isinstance(answers[1], Answer)
        rows.reset({0: starts[0]})
        again = receive_all(rows, 1)[0]
        assert isinstance(again, Answer)
        assert np.isfinite(again.state).all()


def test_large_messages_both_ways_do_not_block_each_other() -> None:
    """More than a pipe holds, and the second sent before the first is answered."""
    (start,) = StartLaw("reach-v3").sample(1, seed=0, stream="collect")
    with VectorSimulator(2) as rows:
        rows.reset(dict.fromkeys(range(64), start))
        receive_all(rows, 64)
        chunk = np.zeros((200, 4), dtype=np.float32)
        for lane in range(2):
            rows.step({row: chunk for row in range(64) if row // 2 % 2 == lane})
        answers = receive_all(rows, 64)
    assert all(isinstance(answer, Answer) and len(answer.segment or ()) == 200 for answer in answers.values())


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import sys\n"
        "from act_kit.sim.workers import Pool\n"
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


def test_a_worker_that_dies_is_an_error_of_one_line() -> None:
    starts = StartLaw("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator(2) as rows:
        rows.reset(dict(enumerate(starts)))
        receive_all(rows, 2)
        rows._workers[1][0].kill()

        def step() -> None:
            rows.step({0: np.zeros((2, 4)), 1: np.zeros((2, 4))})
            receive_all(rows, 2)

        with pytest.raises(WorkerError, match=r"that simulated died .* fewer --workers"):
            step()
