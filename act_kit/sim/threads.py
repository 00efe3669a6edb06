"""Guards for objects that only one thread may use at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from act_kit.errors import InUseError

R = TypeVar("R")


class SingleThreadGuard:
    """Context manager that raises :class:`InUseError` while another thread is inside: ``with self._exclusive: …``.

    Args:
        what: Name of the object in the error message.
        fix: Advice in the error message.
    """

    def __init__(self, what: str, fix: str) -> None:
        self._what = what
        self._fix = fix
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise InUseError(f"Another thread is using this {self._what}. Fix: {self._fix}")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def cache_per_thread(make: Callable[..., R], maxsize: int | None) -> Callable[..., R]:
    """Cache the results of ``make`` separately in each thread, for results that only one thread may use at a time."""
    local = threading.local()

    @functools.wraps(make)
    def cached(*arguments: Hashable) -> R:
        if not hasattr(local, "cached"):
            local.cached = functools.lru_cache(maxsize)(make)
        result: R = local.cached(*arguments)
        return result

    return cached
