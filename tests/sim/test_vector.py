"""Many simulators at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from act_kit.errors import WorkerError
from act_kit.sim.simulator import Segment, Simulator
from act_kit.sim.starts import StartLaw
from act_kit.sim.vector import Crash, VectorSimulator


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rows_are_simulators_of_their_own(num_workers: int) -> None:
    starts = StartLaw("push-v3").sample(3, seed=0, stream="collect")
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 6, 4)).astype(np.float32)
    with VectorSimulator("push-v3", 3, num_workers) as rows:
        resets = rows.reset(dict(enumerate(starts)))
        segments = rows.step(dict(enumerate(actions)))
    for i, start in enumerate(starts):
        alone = Simulator("push-v3")
        assert np.array_equal(resets[i][0], alone.reset(start))
        segment = segments[i]
        assert isinstance(segment, Segment)
        assert np.array_equal(segment.state, alone.step_chunk(actions[i]).state)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_broken_row_leaves_the_others_alone(num_workers: int) -> None:
    starts = StartLaw("push-v3").sample(2, seed=0, stream="collect")
    with VectorSimulator("push-v3", 2, num_workers) as rows:
        rows.reset(dict(enumerate(starts)))
        outcome = rows.step({0: np.zeros((2, 3)), 1: np.zeros((2, 4))})
        assert isinstance(outcome[0], Crash)
        assert isinstance(outcome[1], Segment)
        assert np.isfinite(rows.reset({0: starts[0]})[0][0]).all()


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import sys\n"
        "from act_kit.sim.workers import make_pool\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    print(make_pool(1).submit(os.getpid).result(), flush=True)\n"
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
    with VectorSimulator("push-v3", 2, 2) as rows:
        rows.reset(dict(enumerate(starts)))
        rows._workers[1][0].kill()
        with pytest.raises(WorkerError, match=r"simulated push-v3 died .* fewer --workers"):
            rows.step({0: np.zeros((2, 4)), 1: np.zeros((2, 4))})
