"""Processes that simulate: started fresh (never forked from one that holds threads or a GPU), one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection


def num_cpus() -> int:
    """Count the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def init_worker() -> None:
    """Set up a worker: Ctrl-C is the parent's to handle, and a worker whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def make_pool(num_workers: int) -> ProcessPoolExecutor:
    """Start a pool of ``num_workers`` processes."""
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=init_worker)
