"""Processes that simulate: started fresh (never forked from one with threads or a GPU), ended with their parent."""

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
"""Exit code of a process that was about to start processes of its own while it imported its parent's script."""

_GUARD = "if __name__ == '__main__':"

_JOIN_S = 1.0
"""How long a process that broke a pool may take to end."""


@contextmanager
def environment(variables: Mapping[str, str]) -> Generator[None]:
    """Set environment variables for the processes started within: inherited, they hold before any import there."""
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
    """Set up a worker: Ctrl-C is the parent's to handle, and a worker whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _end_if_importing() -> None:
    """End this process if it is a worker that is still importing its parent's script, which has no guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_NO_GUARD)


class Worker(SpawnProcess):
    """A process that a Ctrl-C leaves alone from its first moment on."""

    def start(self) -> None:
        """Start it.

        Raises:
            WorkerError: The user's script was read from standard input, so a new process cannot import it.
        """
        _end_if_importing()
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script is not None and not Path(script).exists():
            raise WorkerError(
                f"The script {script} is not a file, and worker processes have to import it. Fix: save it to a file, "
                f"with its calls under {_GUARD}, or use one worker."
            )
        with interrupts.held():
            super().start()


class _Context(SpawnContext):
    """What makes worker processes, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> Worker:  # type: ignore[override]  # its name there
        worker = Worker(*args, **kwargs)
        self.workers.append(worker)
        return worker


class Pool(ProcessPoolExecutor):
    """Processes, each of which starts with the first job that needs it.

    Attributes:
        workers: All that were made. The pool itself forgets them as it breaks, before anyone can ask why.
    """

    def __init__(self, num_workers: int) -> None:
        _end_if_importing()
        context = _Context()
        self.workers = context.workers
        super().__init__(num_workers, mp_context=context, initializer=init_worker)


def died(what: str, workers: Iterable[SpawnProcess]) -> WorkerError:
    """Return the error to raise when one of ``workers`` has died that ``what``, and why."""
    codes = [_exit_code(worker) for worker in workers if worker.pid is not None]
    if _NO_GUARD in codes:
        return WorkerError(
            f"Worker processes import the script that starts them, and this one starts them when it is imported. "
            f"Fix: put its calls under {_GUARD}"
        )
    if any(code is not None and code > 0 for code in codes):
        return WorkerError(f"A process that {what} ended with an error of its own; see above.")
    return WorkerError(
        f"A process that {what} died (killed, or out of memory?). What was stored is whole; try again with fewer "
        "--workers."
    )


def _exit_code(worker: SpawnProcess) -> int | None:
    """Return how a process ended, or None if it still runs."""
    deadline = time.monotonic() + _JOIN_S
    while worker.exitcode is None and time.monotonic() < deadline:  # another thread may have just asked in our place
        worker.join(timeout=_JOIN_S / 10)
    return worker.exitcode
