"""What several threads of one process must not share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from act_kit.errors import InUseError

R = TypeVar("R")


class Exclusive:
    """Refuses whoever comes while another thread is inside: ``with self._exclusive: …``."""

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
    """Cache what ``make`` returns, for each thread its own: it can be used by one at a time."""
    local = threading.local()

    @functools.wraps(make)
    def cached(*arguments: Hashable) -> R:
        if not hasattr(local, "cached"):
            local.cached = functools.lru_cache(maxsize)(make)
        made: R = local.cached(*arguments)
        return made

    return cached
