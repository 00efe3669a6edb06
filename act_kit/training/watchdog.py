"""Watchdog that ends a run that hangs; without it, a hung job looks like one that trains."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

EXIT_CODE = 3


def _exit(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(EXIT_CODE)  # the main thread hangs, so an exception would not reach it


class Watchdog:
    """Thread that prints every thread's stack and ends the process if :meth:`beat` is not called for ``timeout_s``."""

    def __init__(
        self, timeout_s: float, on_stall: Callable[[str], None] = _exit, *, resume: str = "act train --resume --out RUN"
    ) -> None:
        self._resume = resume
        self.timeout_s = timeout_s
        self._on_stall = on_stall
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self) -> None:
        """Report progress."""
        self._beat = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout_s / 4)):
            silent_s = time.monotonic() - self._beat
            if silent_s > self.timeout_s:
                self._on_stall(
                    f"Stopped: no progress for {silent_s:.0f} s (trainer.stall_timeout_s={self.timeout_s:g}). "
                    f"The last checkpoint is complete. Resume with: {self._resume}"
                )
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
