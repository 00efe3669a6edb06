"""Command lines of act_kit that run in child processes, side by side with their share of the processors each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import IO, Any, TypeVar

from act_kit import interrupts
from act_kit.cli.console import info, warn
from act_kit.processors import num_cpus

T = TypeVar("T")
R = TypeVar("R")


def choose_jobs(jobs: int, device: str, num: int) -> tuple[int, int]:
    """Return how many of ``num`` trainings run side by side, and the simulation processes of each.

    ``jobs`` 0 means automatic. On a GPU that is one. On the CPU it is at least one per processor, because two trainings
    with a thread each are faster than one after the other with two threads (``benchmarks/company.py``); it is more if
    a remainder would otherwise train alone, such as the third of three on two processors.
    """
    if jobs == 0:
        num_rounds = max(1, num // num_cpus())
        jobs = -(-num // num_rounds) if device == "cpu" else 1
    jobs = min(jobs, num)
    return jobs, max(1, num_cpus() // jobs)


def child() -> None:
    """Run the command line, and exit when the parent process does; the parent keeps standard input open until then.

    Otherwise this process would continue to train, concurrently with a process that resumes the training.
    """
    from act_kit.cli import main

    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    interrupts.leave_report_to_parent()
    main()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


class Children:
    """Processes that run the command line, to which SIGINT and SIGTERM are forwarded.

    Attributes:
        is_side_by_side: True if several run at once. Each line of their output then begins with the name of its run,
            and each uses its share of the processors.
        stopped: Set once a signal was forwarded.
    """

    def __init__(self, jobs: int) -> None:
        """Divide the processors among ``jobs`` processes."""
        self.is_side_by_side = jobs > 1
        self._jobs = jobs
        self._num_threads = max(1, num_cpus() // jobs)
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen[str]] = set()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Children:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.stopped.is_set():
            interrupts.report_interruption()
            sys.exit(interrupts.EXIT_CODE)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stopped.set()
        for process in list(self._running):
            process.send_signal(number)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of ``function``, which calls :meth:`run`, for all items, as many at a time as may run."""
        if not self.is_side_by_side:
            return list(map(function, items))
        with ThreadPoolExecutor(self._jobs) as pool:
            return list(pool.map(function, items))

    def run(self, arguments: Sequence[str], name: str) -> int:
        """Run the command line in another process and return its exit code."""
        if self.stopped.is_set():
            return interrupts.EXIT_CODE
        pipe = subprocess.PIPE if self.is_side_by_side else None
        # A separate process group: otherwise a Ctrl-C of the terminal would reach the process twice.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from act_kit.cli.children import child; child()", *arguments],
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self._num_threads)} if self.is_side_by_side else None,
            process_group=0,
        )
        self._running.add(process)
        if self.stopped.is_set():  # while the process was started
            process.send_signal(signal.SIGTERM)
        printers: list[threading.Thread] = []
        for stream, show in ((process.stdout, info), (process.stderr, warn)):
            if stream is not None:
                printers.append(threading.Thread(target=_print_lines, args=(stream, name, show), daemon=True))
                printers[-1].start()
        code = process.wait()
        for printer in printers:
            printer.join()
        self._running.discard(process)
        return code


def _print_lines(stream: IO[str], name: str, show: Callable[[str], None]) -> None:
    """Print the lines of a process as they arrive, each after the name of its run."""
    for line in stream:
        show(f"{name}: {line.rstrip()}")
