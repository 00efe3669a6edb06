"""Tests that every example runs, with tiny sizes, and that the API reference lists every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import act_kit
from tests.conftest import ONE_THREAD

ROOT = Path(__file__).parent.parent

EXAMPLES = {
    "collect_train_evaluate": ["--demonstrations", "6", "--steps", "20", "--episodes", "2", "--workers", "1", "--out"],
    "compare_methods": ["--demonstrations", "6", "--steps", "10", "--episodes", "2", "--workers", "1", "--out"],
    "custom_agent": ["--episodes", "3", "--workers", "1"],
    "custom_head": ["--demonstrations", "6", "--steps", "20", "--out"],
    "custom_demonstrator": ["--demonstrations", "3", "--out"],
    "gymnasium_loop": ["--num-envs", "2", "--num-steps", "260", "--updates", "2"],
    "onnx_policy": ["policy.onnx", "--episodes", "2", "--workers", "1"],
}
"""Arguments by example; those with ``--out`` write into a new folder, ``policy.onnx`` is an exported policy."""


def test_every_example_is_tested() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == sorted(EXAMPLES)


def test_api_reference_lists_the_public_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: act_kit\.(\w+)$", page, re.MULTILINE)) == sorted(act_kit.__all__)


@pytest.mark.e2e
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tiny_run: Path, tmp_path: Path) -> None:
    arguments = EXAMPLES[name]
    if "policy.onnx" in arguments:
        act_kit.export(tiny_run, tmp_path / "policy.onnx")
    if arguments[-1] == "--out":
        arguments = [*arguments, str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout
