"""``act collect --demonstrator teleop`` in a separate process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from act_kit.collection.teleop.session import Session
from act_kit.datasets.store import EpisodeStore
from act_kit.sim.render import Gl
from act_kit.sim.simulator import Simulator
from tests.collection.teleop.serving import teleop_config
from tests.collection.teleop.test_server import STAY, UP, send
from tests.collection.teleop.test_session import reach
from tests.conftest import ONE_THREAD, act


def start(*arguments: object) -> tuple[subprocess.Popen[str], str, str]:
    """Start the command; return its process, and the host and token of its page."""
    command = ["collect", "--task", "reach-v3", "--demonstrator", "teleop", "teleop.port=0", *map(str, arguments)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ONE_THREAD,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://(\S+)/\?token=(\S+)", line):
            return process, found[1], found[2]
    raise AssertionError("the command ended before it printed the address")


@pytest.mark.e2e
@pytest.mark.gl
def test_ctrl_c_keeps_stored_episodes_and_prints_how_to_resume(gl: Gl, tmp_path: Path) -> None:
    simulator = Simulator("reach-v3")
    session = Session(teleop_config(n=3), tmp_path / "data", simulator)
    reach(session, simulator)
    session.keep()
    process, host, token = start("--n", 3, "--out", tmp_path / "data", "--resume", "teleop.operator=ben")
    with connect(f"ws://{host}/ws?token={token}", origin=Origin(f"http://{host}")) as page:
        send(page, STAY)
        send(page, UP, 0.5)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    assert process.returncode == 130, output
    assert "Stopped. Resume with: act collect --task reach-v3 --n 3" in output
    assert "--demonstrator teleop" in output
    assert "Traceback" not in output
    assert EpisodeStore.open(tmp_path / "data").num_episodes == 1


@pytest.mark.gl
def test_no_folder_is_left_if_no_episode_was_kept(gl: Gl, tmp_path: Path) -> None:
    process, *_ = start("--out", tmp_path / "data")
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert (process.returncode, "Stopped." in output) == (130, True), output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "reach-v3,push-v3"], "one task at a time"),
        (["--noise", "0.1"], "sees the executed actions"),
        (["teleop.cameras=[corner9]"], "Did you mean 'corner"),
        (["teleop.rate_hz=0"], "teleop.rate_hz=0: expected 1 to 80"),
        (["teleop.size_px=2000"], "teleop.size_px=2000: expected 64 to 1024"),
        (["teleop.speed=0"], "teleop.speed=0.0: expected more than 0"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = act("collect", "--demonstrator", "teleop", "--out", tmp_path / "data", *arguments, check=2)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gl
def test_the_error_names_a_port_that_is_taken(gl: Gl, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = act("collect", "--demonstrator", "teleop", "--out", tmp_path / "data", f"teleop.port={port}", check=2)
    assert f"teleop.port={port}: Address already in use" in done.stderr
