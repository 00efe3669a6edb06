"""The watchdog: silence ends the process, work does not."""

from __future__ import annotations

import subprocess
import sys
import time

from act_kit.training.watchdog import EXIT_CODE, Watchdog


def test_silence_is_reported() -> None:
    messages: list[str] = []
    with Watchdog(0.2, on_stall=messages.append):
        time.sleep(0.6)
    assert len(messages) == 1
    assert "nothing has happened" in messages[0]
    assert "--resume" in messages[0]


def test_a_run_that_works_is_left_alone() -> None:
    messages: list[str] = []
    with Watchdog(0.5, on_stall=messages.append) as watchdog:
        for _ in range(10):
            time.sleep(0.1)
            watchdog.beat()
    assert messages == []


def test_a_hung_process_ends_with_the_stack_of_what_hangs() -> None:
    code = (
        "import time\n"
        "from act_kit.training.watchdog import Watchdog\n"
        "def hangs(): time.sleep(60)\n"
        "with Watchdog(0.3): hangs()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == EXIT_CODE
    assert "in hangs" in done.stderr
