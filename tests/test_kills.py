"""Kills, interrupts and disk errors at any file-system operation.

Finished folders are not lost, and the next command gives the same files as an undisturbed one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ONE_THREAD
from tests.kills import CASES, EXIT_CODES

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent


def inject_faults(folder: Path, fault: str, most: int, names: Sequence[str]) -> list[dict[str, object]]:
    """Inject a fault into cases at up to ``most`` operations each (0 = all), in a process that can fork."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", folder, fault, str(most), *names],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("kill", ("collect", "merge --overwrite")),
        ("full disk", ("split --overwrite",)),
    ],
)
def test_faults_at_some_operations(tmp_path: Path, fault: str, names: Sequence[str]) -> None:
    reports = inject_faults(tmp_path, fault, 3, names)
    assert [report["case"] for report in reports] == list(names)
    for report in reports:
        assert report["wrong"] == []
        assert report["num_tried"] in (6, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fault", EXIT_CODES)
def test_faults_at_every_operation(tmp_path: Path, fault: str, name: str) -> None:
    (report,) = inject_faults(tmp_path, fault, 0 if fault == "kill" else 40, [name])
    print(f"{name}, {fault}: {report['num_tried']} of {report['num_operations']} operations")
    assert report["wrong"] == []
