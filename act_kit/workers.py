"""Worker processes, which end with their parent.

They are spawned, because a process with threads or a GPU cannot be forked safely.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from act_kit import interrupts
from act_kit.errors import WorkerError

_NO_GUARD = 77
"""Exit code of a worker that would start worker processes while it imports its parent's script."""

_GUARD = "if __name__ == '__main__':"

_JOIN_S = 1.0
"""Time to wait for the exit code of a process that broke a pool."""


@contextmanager
def environment(variables: Mapping[str, str]) -> Generator[None]:
    """Set environment variables for processes started in this context, which inherit them before their first import."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def init_worker() -> None:
    """Initialize a worker: it ignores Ctrl-C, which the parent handles, and it ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def end_if_importing() -> None:
    """Exit if this process is a worker that still imports its parent's script, which therefore has no guard.

    A verb calls it first: otherwise it would refuse the output that the same call in the parent process holds.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_NO_GUARD)


class Worker(SpawnProcess):
    """Process that ignores Ctrl-C from its first moment on."""

    def start(self) -> None:
        """Start the process.

        Raises:
            WorkerError: The user's script was read from standard input, so a worker process cannot import it.
        """
        end_if_importing()
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script is not None and not Path(script).exists():
            raise WorkerError(
                f"The script {script} is not a file: worker processes must import it. Fix: save it to a file, with its "
                f"calls under {_GUARD}, or use one worker."
            )
        with interrupts.signals_blocked():
            super().start()


class _Context(SpawnContext):
    """Multiprocessing context that creates :class:`Worker` processes and keeps a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> Worker:  # type: ignore[override]  # noqa: N802  # the base class's name
        worker = Worker(*args, **kwargs)
        self.workers.append(worker)
        return worker


class Pool(ProcessPoolExecutor):
    """Pool of worker processes, each of which starts with the first job that needs it.

    Attributes:
        workers: All processes ever created. The base class discards its own list when the pool breaks, before the exit
            codes can be read.
    """

    def __init__(self, num_workers: int) -> None:
        end_if_importing()
        context = _Context()
        self.workers = context.workers
        super().__init__(num_workers, mp_context=context, initializer=init_worker)


def worker_error(activity: str, workers: Iterable[SpawnProcess]) -> WorkerError:
    """Return the error to raise after one of ``workers`` died during ``activity``, with the reason."""
    codes = [_exit_code(worker) for worker in workers if worker.pid is not None]
    if _NO_GUARD in codes:
        return WorkerError(
            "The script starts worker processes when it is imported: worker processes must be able to import it. Fix: "
            f"put its calls under {_GUARD}"
        )
    if max(filter(None, codes), default=0) > 0:
        return WorkerError(f"A worker process failed while {activity}; its error is printed above.")
    return WorkerError(
        f"A worker process died while {activity} (killed, or out of memory?). The stored files are intact. Fix: try "
        "again with fewer --workers."
    )


def _exit_code(worker: SpawnProcess) -> int | None:
    """Return the exit code of a process, or None if it still runs."""
    deadline = time.monotonic() + _JOIN_S
    while worker.exitcode is None and time.monotonic() < deadline:  # another thread may be joining it
        worker.join(timeout=_JOIN_S / 10)
    return worker.exitcode
