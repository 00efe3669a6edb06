"""Numbers of processes and threads follow the container's CPU quota, and waiting threads sleep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from act_kit.processors import cpu_quota, num_cpus, num_visible_cpus


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 0.5),
        # In a container the path is the host's, and the mount is the container's own group.
        ("0::/docker/1234\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/job\n1:cpuset:/\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "garbage\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_cpu_quotas_of_both_versions_are_read(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    _write(tmp_path, {"own": own} | {f"mount/{name}": text for name, text in files.items()})
    assert cpu_quota(str(tmp_path / "mount"), str(tmp_path / "own")) == quota


def test_a_quota_limits_processes_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("act_kit.processors.num_visible_cpus", lambda: 64)
    monkeypatch.setattr("act_kit.processors.cpu_quota", lambda: 1.5)
    assert num_cpus() == 2
    monkeypatch.setattr("act_kit.processors.cpu_quota", lambda: 0.2)
    assert num_cpus() == 1
    monkeypatch.setattr("act_kit.processors.cpu_quota", lambda: None)
    assert num_cpus() == 64


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "5"}, "None 5"),
        ({"KMP_BLOCKTIME": "5"}, "None None"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_set_a_policy(variables: dict[str, str], expected: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {name: value for name, value in os.environ.items() if name not in names} | variables
    program = "import act_kit, os; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_there_are_no_more_threads_than_visible_processors() -> None:
    assert 1 <= num_cpus() <= num_visible_cpus()
