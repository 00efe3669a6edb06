"""Ctrl-C and SIGTERM at any moment: one line, exit code 130 and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from act_kit.datasets.store import EpisodeStore
from tests.conftest import ONE_THREAD, TINY

pytestmark = pytest.mark.e2e

STARTED = "print('started', flush=True)"


def start(*arguments: object, before: str = "") -> subprocess.Popen[str]:
    """Start the command line in its own session; return it once the interpreter has started."""
    code = f"{STARTED}\n{before}\nfrom act_kit.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def members(session: int) -> list[psutil.Process]:
    """Return the live processes of a session, except the one that unlinks semaphores, which ends by itself."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
            if alive and "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def interrupt(process: subprocess.Popen[str], *, times: int = 1, number: int = signal.SIGINT) -> str:
    """Interrupt a command, check how it ends, and return the line it prints."""
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (process.returncode, len(lines)) == (130, 1), f"{process.returncode}: {out}{err}"
    assert lines[0].startswith("Stopped.")
    deadline = time.monotonic() + 5
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []
    return lines[0]


def commands(store: EpisodeStore, run: Path, out: Path) -> dict[str, list[object]]:
    return {
        "collect": ["collect", "--task", "reach-v3", "--n", 2000, "--workers", 2, "--out", out / "collected"],
        "train": ["train", "--data", store.path, *TINY, "trainer.steps=100000", "--out", out / "run"],
        "eval": ["eval", run, "--episodes", 500, "--workers", 2, "--out", out / "eval"],
        "report": ["report", store.path, "--out", out / "report"],
        "replay": ["data", "verify", store.path, "--workers", 2],
    }


@pytest.mark.parametrize("verb", ["collect", "train", "eval"])
def test_one_line_during_startup_and_work(reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path, verb: str) -> None:
    for delay in (0.1, 2.5, 6):
        process = start(*commands(reach_store, tiny_run, tmp_path / str(delay))[verb], before="import act_kit.cli")
        time.sleep(delay)
        interrupt(process)
    assert list(tmp_path.rglob(".*.act-*")) == [], "locks and incomplete folders"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("verb", ["collect", "train", "eval", "report", "replay"])
def test_one_line_at_any_moment(
    reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path, verb: str, times: int
) -> None:
    span = 1.2 if verb in ("report", "replay") else 8.0
    for i in range(20):
        process = start(*commands(reach_store, tiny_run, tmp_path / str(i))[verb], before="import act_kit.cli")
        time.sleep(0.1 + span * i / 20)  # earlier, the Python interpreter is still starting
        if process.poll() is None:
            interrupt(process, times=times)
        process.communicate()


def test_an_interrupted_collection_prints_its_resume_command(tmp_path: Path) -> None:
    arguments = ("collect", "--task", "reach-v3", "--n", 2000, "--workers", 2, "--out", tmp_path / "a b")
    process = start(*arguments)
    while not (tmp_path / "a b").exists() and process.poll() is None:
        time.sleep(0.02)
    line = interrupt(process, number=signal.SIGTERM)
    assert line.endswith(f"--out '{tmp_path / 'a b'}' --resume")
    assert EpisodeStore.open(tmp_path / "a b").num_episodes


def test_a_second_signal_is_not_deferred() -> None:
    code = (
        "import os, signal, time\n"
        "from act_kit import interrupts\n"
        "interrupts.install()\n"
        "with interrupts.resume_command('act again'), interrupts.deferred() as raise_if_interrupted:\n"
        "    raise_if_interrupted()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    try:\n"
        "        raise_if_interrupted()\n"
        "    except KeyboardInterrupt:\n"
        "        print('waited', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "waited\n", "Stopped. Resume with: act again\n")


SCRIPT = """
import act_kit
from act_kit.errors import WorkerError
try:
    act_kit.collect("reach-v3", 2, out="data", workers=2)
except WorkerError as error:
    print(f"refused: {error}")
"""


def test_a_script_without_a_main_guard_gets_the_fix(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=ONE_THREAD)
    assert "Fix: put its calls under if __name__ == '__main__':" in done.stdout
    assert done.stderr == ""
    assert "memory" not in done.stdout


def test_a_script_from_standard_input_gets_an_explanation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=ONE_THREAD
    )
    assert "<stdin> is not a file" in done.stdout
    assert done.stderr == ""
