"""Number of processors that this process may use, and OpenMP settings for waiting threads.

Containers limit processor time, not visible processors: with ``docker run --cpus 2`` all 64 are visible. With a thread
for each, every thread would be stopped for most of each period, and the others would wait for it.
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
    """Return the number of processors that this process may use, given its affinity and its container's CPU quota."""
    visible = num_visible_cpus()
    quota = cpu_quota()
    return visible if quota is None else max(1, min(visible, -int(-quota // 1)))


def num_visible_cpus() -> int:
    """Return the number of processors that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: str = CGROUPS, own: str = OWN_CGROUPS) -> float | None:
    """Return the control groups' CPU quota in processors, the smallest of all levels; None if unlimited.

    Args:
        root: Mount point of the control groups: version 2, or version 1 with a folder for each controller.
        own: File that lists the control groups of this process.
    """
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = [root] if controllers == "" else []
        if "cpu" in controllers.split(","):
            mounts = [f"{root}/{controllers}", f"{root}/cpu"]
        for mount in mounts:
            # In a container the path is often the host's; the mount itself is then the container's group.
            group = mount
            quotas.append(_read_quota(group))
            for part in path.split("/"):
                if part not in ("", ".."):
                    group = f"{group}/{part}"
                    quotas.append(_read_quota(group))
    return min(filter(None, quotas), default=None)


def _read_quota(group: str) -> float | None:
    text = _read(f"{group}/cpu.max") or f"{_read(f'{group}/cpu.cfs_quota_us')} {_read(f'{group}/cpu.cfs_period_us')}"
    try:
        limit, period = map(int, text.split())
        return limit / period if limit > 0 else None
    except ValueError:  # missing, "max", or not two numbers
        return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


SPIN_COUNT = 1000
"""Spin iterations of a waiting GNU OpenMP thread before it sleeps: about 10 µs."""


def thread_settings() -> Mapping[str, str]:
    """Return the OpenMP environment variables for this machine, without those that the user has set.

    Threads that spin occupy processors that the thread they wait for needs, if other work runs on the machine; threads
    that sleep at once take long to wake. If GNU OpenMP threads spin briefly and then sleep, a training alone on the
    machine is a tenth slower, and one alongside other work does not collapse (``benchmarks/company.py``). OpenMP reads
    these variables once, when the first library that uses it is loaded.
    """
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
    if num_cpus() < num_visible_cpus():
        settings["OMP_NUM_THREADS"] = str(num_cpus())
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        del settings["OMP_WAIT_POLICY"], settings["GOMP_SPINCOUNT"]
    return {name: value for name, value in settings.items() if name not in os.environ}
