"""Handling of Ctrl-C and SIGTERM: the command line ends with one line on standard error and exit code 130.

An exception raised by a signal handler reaches the code that happens to run: an import, a clean-up that catches it, a
callback that prints a traceback. So the handler ends the process itself, with all its children, unless some work must
be completed first (:func:`deferred`) or must not be interrupted (:func:`signals_blocked`). Importing the library
installs no handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from contextlib import contextmanager

TYPE_CHECKING = False  # this module must import fast: until then, Ctrl-C prints a traceback
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import NoReturn

EXIT_CODE = 130
"""Exit code of a command interrupted by SIGINT or SIGTERM."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_RESOURCE_TRACKER = "multiprocessing.resource_tracker"
"""Part of the command line of the process that unlinks semaphores. A worker's has a warning filter without the package
name."""


class _State:
    """Interrupt state of this process.

    Attributes:
        resume: Command that resumes the interrupted work; "" if there is none.
        num_received: Number of signals received.
        num_deferring: Number of active :func:`deferred` blocks.
        num_holding: Number of active :func:`signals_blocked` blocks.
        is_reported: True once the line has been printed, or if another process prints it.
        cleanups: Functions that remove incomplete files, called before a signal ends the process.
    """

    resume: str = ""
    num_received: int = 0
    num_deferring: int = 0
    num_holding: int = 0
    is_reported: bool = False
    cleanups: list[Callable[[], object]] = []  # noqa: RUF012  (one instance per process)


_state = _State()


def install() -> None:
    """Handle SIGINT and SIGTERM, unless they are ignored: a shell ignores SIGINT for background jobs."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    # The process that unlinks semaphores warns of each one left by a killed process.
    warning_filter = "ignore:resource_tracker:UserWarning"
    if warning_filter not in sys.warnoptions:
        sys.warnoptions.append(warning_filter)


def interrupted() -> bool:
    """Return True if a signal has arrived."""
    return _state.num_received > 0


def is_first_process() -> bool:
    """Return True if this process is the first one started by ``torchrun``, or was not started by it."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def report_interruption() -> None:
    """Print the line that reports the interruption, once, and only in the first process of a training."""
    if _state.is_reported or not is_first_process():
        return
    _state.is_reported = True
    os.write(2, f"Stopped.{resume_hint()}\n".encode(errors="replace"))


def leave_report_to_parent() -> None:
    """Print nothing when this process is stopped: its parent is stopped too and reports it."""
    _state.is_reported = True


def resume_hint() -> str:
    """Return ``" Resume with: …"``, or an empty string if there is nothing to resume."""
    return f" Resume with: {_state.resume}" if _state.resume else ""


@contextmanager
def resume_command(command: str) -> Generator[None]:
    """Report ``command`` as the one that resumes the work in this block if it is interrupted or fails."""
    before, _state.resume = _state.resume, command
    yield  # an exception keeps the command: it is printed at the top level
    _state.resume = before


@contextmanager
def cleanup_on_interrupt(cleanup: Callable[[], object]) -> Generator[None]:
    """Call ``cleanup`` if a signal ends the process within this block, to remove incomplete files."""
    _state.cleanups.append(cleanup)
    try:
        yield
    finally:
        _state.cleanups.remove(cleanup)


@contextmanager
def deferred() -> Generator[Callable[[], None]]:
    """Defer the first signal until the yielded function is called, which then raises KeyboardInterrupt.

    A second signal ends the process at once.
    """
    _state.num_deferring += 1
    try:
        yield raise_if_interrupted
    finally:
        _state.num_deferring -= 1
    raise_if_interrupted()


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived."""
    if interrupted():
        raise KeyboardInterrupt


@contextmanager
def signals_blocked() -> Generator[None]:
    """Block signals until the end of this block, also in the processes started within it.

    Child processes inherit the blocked signal mask, so Ctrl-C does not interrupt their imports.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    num_before = _state.num_received
    _state.num_holding += 1
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _state.num_holding -= 1
    if _state.num_received > num_before:
        _end_unless_deferred()


def _handle(number: int, frame: FrameType | None) -> None:
    _state.num_received += 1
    if not _state.num_holding:
        _end_unless_deferred()


def _end_unless_deferred() -> None:
    if not (_state.num_deferring and _state.num_received == 1):
        _end()


def _end() -> NoReturn:
    """Print the line, kill all children and end this process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the signal may have arrived during a write
            stream.flush()
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
    report_interruption()
    with contextlib.suppress(Exception):
        _kill_children()
    for cleanup in reversed(_state.cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    os._exit(EXIT_CODE)


def _kill_children() -> None:
    """Kill all descendants, once all are suspended: none can start another, or write to a killed one.

    Importing glfw, for example, starts a process for each library whose version it reads.
    """
    import psutil

    seen: list[psutil.Process] = []
    while found := [child for child in psutil.Process().children(recursive=True) if child not in seen]:
        seen += found
        for child in found:
            with contextlib.suppress(psutil.Error):
                child.suspend()
    for child in seen:
        with contextlib.suppress(psutil.Error):
            if _RESOURCE_TRACKER in " ".join(child.cmdline()):
                child.resume()  # it unlinks semaphores and ends by itself
            else:
                child.kill()
