"""Watchdog that ends a run that hangs; without it, a hung job looks like one that trains."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

EXIT_CODE = 3


def _exit(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(EXIT_CODE)  # the main thread hangs, so an exception would not reach it


@contextmanager
def watchdog(
    timeout_s: float, on_stall: Callable[[str], None] = _exit, *, resume: str = "act train --resume --out RUN"
) -> Generator[Callable[[], None]]:
    """Print every thread's stack and end the process if the yielded function is not called for ``timeout_s``."""
    last_beat = time.monotonic()
    stop = threading.Event()

    def beat() -> None:
        nonlocal last_beat
        last_beat = time.monotonic()

    def watch() -> None:
        while not stop.wait(min(1.0, timeout_s / 4)):
            silent_s = time.monotonic() - last_beat
            if silent_s > timeout_s:
                on_stall(
                    f"Stopped: no progress for {silent_s:.0f} s (trainer.stall_timeout_s={timeout_s:g}). "
                    f"The last checkpoint is complete. Resume with: {resume}"
                )
                return

    thread = threading.Thread(target=watch, daemon=True, name="watchdog")
    thread.start()
    try:
        yield beat
    finally:
        stop.set()
        thread.join()
