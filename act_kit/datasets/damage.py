"""Errors of damaged files: one line that names the file, whatever the library that read it raised."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from act_kit.errors import DatasetError


@contextmanager
def as_dataset_error(what: str, fix: str = "") -> Generator[None]:
    """Turn any exception in the block into a :class:`DatasetError`: ``what``, its first line, and ``fix``."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{what}: {one_line(error)}.{fix and f' Fix: {fix}'}") from error


def one_line(error: BaseException) -> str:
    """Return the first line of an error message, without its final period."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
