"""Watchdog: a hang ends the process, progress does not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.training.watchdog import EXIT_CODE, watchdog
from tests.conftest import ONE_THREAD


def test_a_hang_is_reported() -> None:
    messages: list[str] = []
    with watchdog(0.2, on_stall=messages.append):
        time.sleep(0.6)
    assert len(messages) == 1
    assert "no progress for" in messages[0]
    assert "--resume" in messages[0]


def test_a_run_with_progress_is_not_stopped() -> None:
    messages: list[str] = []
    with watchdog(0.5, on_stall=messages.append) as beat:
        for _ in range(10):
            time.sleep(0.1)
            beat()
    assert messages == []


def test_a_hung_process_ends_with_the_stack_of_the_hanging_function() -> None:
    code = (
        "import time\n"
        "from act_kit.training.watchdog import watchdog\n"
        "def hangs(): time.sleep(60)\n"
        "with watchdog(0.3): hangs()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == EXIT_CODE
    assert "in hangs" in done.stderr


@pytest.mark.e2e
def test_a_training_whose_rollout_hangs_ends(reach_store: EpisodeStore, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from act_kit.datasets.store import EpisodeStore\n"
        "from act_kit.training.trainer import Trainer\n"
        "from tests.conftest import tiny_config\n"
        "def hangs(policy): time.sleep(60)\n"
        "config = tiny_config('trainer.stall_timeout_s=3', 'trainer.steps=4')\n"
        "Trainer(config, [EpisodeStore.open(sys.argv[1])], Path(sys.argv[2]), evaluator=hangs).train()\n"
    )
    command = [sys.executable, "-c", code, str(reach_store.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ONE_THREAD)
    assert done.returncode == EXIT_CODE
    assert "trainer.stall_timeout_s=3" in done.stderr
    assert "in hangs" in done.stderr
