"""Ctrl-C and SIGTERM end the command line with one line on standard error and exit code 130, whenever they come.

An exception raised by a signal handler lands in whatever happens to run: an import, a clean-up that swallows it, a
callback that prints a traceback. So the handler ends the process itself, with all its children, unless something must
be finished first (:func:`deferred`) or must not be torn (:func:`held`). The library alone installs no handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from contextlib import contextmanager

TYPE_CHECKING = False  # importing this module must take no time: until it is there, Ctrl-C prints a traceback
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import NoReturn

EXIT_CODE = 130
"""Of an interrupted command, be it by SIGINT or by SIGTERM."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_TRACKER = "multiprocessing.resource_tracker"
"""In the command line of the process that unlinks semaphores; a worker's names its warnings, without the package."""


class _State:
    """Where this process stands.

    Attributes:
        resume: The command that resumes what is interrupted; "" where there is nothing to resume.
        num_received: Signals since the start.
        num_deferring, num_holding: Sections entered.
        told: Whether the user has been told that it stopped.
        cleanups: What removes half-written files, should a signal end the process.
    """

    resume: str = ""
    num_received: int = 0
    num_deferring: int = 0
    num_holding: int = 0
    told: bool = False
    cleanups: list[Callable[[], object]] = []  # noqa: RUF012  (there is one state in a process)


_state = _State()


def install() -> None:
    """Handle SIGINT and SIGTERM, except where they are ignored: the shell ignores SIGINT for background jobs."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    # The process that unlinks semaphores warns of each one that a killed process leaves to it.
    silence = "ignore:resource_tracker:UserWarning"
    if silence not in sys.warnoptions:
        sys.warnoptions.append(silence)


def interrupted() -> bool:
    """Return whether a signal has arrived."""
    return _state.num_received > 0


def is_first_process() -> bool:
    """Return whether this process is the first, or the only one, of those that ``torchrun`` started together."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def tell() -> None:
    """Print the one line that says what happened, once; of the processes of a training, the first does."""
    if _state.told or not is_first_process():
        return
    _state.told = True
    os.write(2, f"Stopped.{advice()}\n".encode(errors="replace"))


def leave_it_to_the_parent_to_tell() -> None:
    """Print nothing when this process is stopped: the process that started it is stopped too, and says so."""
    _state.told = True


def advice() -> str:
    """Return ``" Resume with: …"``, or an empty string where there is nothing to resume."""
    return f" Resume with: {_state.resume}" if _state.resume else ""


@contextmanager
def resumed_by(command: str) -> Generator[None]:
    """Tell the user that ``command`` resumes what is done within, should it be interrupted or fail."""
    before, _state.resume = _state.resume, command
    yield  # an exception leaves it in place: it is printed when that has reached the top
    _state.resume = before


@contextmanager
def cleaned_up_by(cleanup: Callable[[], object]) -> Generator[None]:
    """Call ``cleanup`` should a signal end the process within: what it has half written is then of no use."""
    _state.cleanups.append(cleanup)
    try:
        yield
    finally:
        _state.cleanups.remove(cleanup)


@contextmanager
def deferred() -> Generator[Callable[[], None]]:
    """Let the first signal wait until the yielded function is called, which then raises KeyboardInterrupt.

    A second signal ends the process all the same.
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
def held() -> Generator[None]:
    """Hold every signal back until the end, for this process and for those that it starts within.

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
        _react()


def _handle(number: int, frame: FrameType | None) -> None:
    _state.num_received += 1
    if not _state.num_holding:
        _react()


def _react() -> None:
    if not (_state.num_deferring and _state.num_received == 1):
        _end()


def _end() -> NoReturn:
    """Print the line, end all children and this process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the signal may have come in the middle of a write
            stream.flush()
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
    tell()
    with contextlib.suppress(Exception):
        _kill_children()
    for cleanup in reversed(_state.cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    os._exit(EXIT_CODE)


def _kill_children() -> None:
    """Kill all descendants, after all of them were stopped: none starts another, or writes to one that is gone.

    Importing glfw, for one, asks several libraries for their version, each in a process of its own.
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
            if _TRACKER in " ".join(child.cmdline()):
                child.resume()  # it cleans up, and ends by itself
            else:
                child.kill()
