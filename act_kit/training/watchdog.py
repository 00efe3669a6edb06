"""Stops a run that hangs: a job that waits for ever looks like one that trains."""

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
    os._exit(EXIT_CODE)  # the main thread hangs: nothing gentler reaches it


class Watchdog:
    """Ends the process, with every thread's stack, when :meth:`beat` was not called for ``timeout_s``."""

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
        """Say that the run is alive."""
        self._beat = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout_s / 4)):
            silent_s = time.monotonic() - self._beat
            if silent_s > self.timeout_s:
                self._on_stall(
                    f"Stopped: nothing has happened for {silent_s:.0f} s (trainer.stall_timeout_s={self.timeout_s:g}). "
                    f"The last checkpoint is whole. Resume with: {self._resume}"
                )
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
