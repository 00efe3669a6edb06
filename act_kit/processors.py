"""The processors that this process may use, and threads that leave them to others while they wait.

Containers limit processor time, not the processors that one sees: under ``docker run --cpus 2`` all 64 are visible. A
thread for each would then be stopped for most of every period, and the others would wait for it.
"""

from __future__ import annotations

import os

# Imported before anything else, so that Ctrl-C is handled early: no pathlib, no typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CGROUPS = "/sys/fs/cgroup"
OWN_CGROUPS = "/proc/self/cgroup"


def num_cpus() -> int:
    """Count the processors this process may use: by its affinity, and by the CPU quota of its container."""
    visible = num_visible_cpus()
    quota = cpu_quota()
    return visible if quota is None else max(1, min(visible, -int(-quota // 1)))


def num_visible_cpus() -> int:
    """Count the processors that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: str = CGROUPS, own: str = OWN_CGROUPS) -> float | None:
    """Return the processors' worth of time that control groups allow (the least of all levels); None if unlimited.

    Args:
        root: Where control groups are mounted: version 2, or version 1 with a folder for each controller.
        own: The file that names those of this process.
    """
    quotas: list[float] = []
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root]
        elif "cpu" in controllers.split(","):
            mounts = [f"{root}/{controllers}", f"{root}/cpu"]
        else:
            continue
        for mount in mounts:
            # Inside a container the path is often that of the host; then the mount itself is the container's group.
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                quota = _read_quota("/".join([mount, *parts[:depth]]))
                if quota is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _read_quota(group: str) -> float | None:
    both = (_read(f"{group}/cpu.max") or "").split()
    limit, period = both if len(both) == 2 else (_read(f"{group}/cpu.cfs_{name}_us") for name in ("quota", "period"))
    try:
        return int(limit) / int(period) if limit and period and int(limit) > 0 else None
    except ValueError:  # "max", or something else
        return None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


SPIN_COUNT = 1000
"""Turns of the loop in which a thread of GNU OpenMP waits before it sleeps: some 10 µs."""


def thread_settings() -> Mapping[str, str]:
    """Return the environment variables of OpenMP that suit this machine; what the user has set is not among them.

    Threads that wait in a loop keep a processor from the thread they wait for, when other work is on the processors;
    threads that sleep at once take long to wake. If those of GNU OpenMP loop for a moment and then sleep, a training
    loses a tenth of its rate alone, and does not collapse in company (``benchmarks/company.py``). OpenMP reads these
    variables once, when the first library that uses it is loaded.
    """
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
    if num_cpus() < num_visible_cpus():
        settings["OMP_NUM_THREADS"] = str(num_cpus())
    waits = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    is_chosen = any(name in os.environ for name in waits)
    return {
        name: value for name, value in settings.items() if name not in os.environ and not (is_chosen and name in waits)
    }
