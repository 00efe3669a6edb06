"""Damaged files of every kind end in a line, in bounded time and memory; see :mod:`tests.fuzzing`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are damaged, made once."""
    folder = tmp_path_factory.mktemp("fuzzing") / "material"
    assert _fuzz(folder, seed=0, cases=0) == []
    return folder


def test_damaged_files_end_in_a_line(material: Path) -> None:
    assert _fuzz(material, seed=13, cases=25) == []


@pytest.mark.slow
def test_many_damaged_files_end_in_a_line(material: Path) -> None:
    assert _fuzz(material, seed=14, cases=500) == []


def _fuzz(material: Path, *, seed: int, cases: int) -> list[str]:
    """Run cases; return a line for each that failed."""
    command = [sys.executable, "-m", "tests.fuzzing", str(material), "--seed", str(seed), "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("{")]
