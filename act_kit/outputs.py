"""Output folders: no overwriting without permission, no half-written folder, and one writing process per folder.

While a folder ``NAME`` is being written, these hidden siblings exist next to it; a kill may leave them behind:

- ``.NAME.act-lock``: The lock of the writing process. The kernel frees it when that process ends for any reason.
- ``.NAME.act-new``: A new, incomplete folder. The next writer deletes it.
- ``.NAME.act-old``: The folder that ``--overwrite`` replaces. It is deleted once the new folder is complete.
- ``.NAME.act-trash``: A folder that is being deleted. The next writer finishes the deletion.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from act_kit import interrupts
from act_kit.errors import OutputError
from act_kit.files import DATASETS, SEEDS, read_json, require_existing

_COMPLETE = ("summary.json", "act_kit.json", "view.html", "monitor.json", DATASETS)
"""Files that exist only in complete folders."""

_MARKERS = ("zarr.json", "config.yaml", "finetune.yaml", "init_states.json", "demo.json", SEEDS, *_COMPLETE)
"""A folder without any of these files was not made by this package and is never deleted."""

_held: set[Path] = set()
"""Folders whose locks this process holds."""


def check_output(path: Path, *, overwrite: bool, hint: str = "") -> None:
    """Raise :class:`OutputError` if ``path`` exists without ``overwrite``, or was not made by this package.

    ``hint`` is a sentence, without a final period, that the error message adds.
    """
    if not path.exists() or _is_empty(path):
        return
    if not overwrite:
        hint = hint and f"{hint}. "
        raise OutputError(f"{path} exists. {hint}Fix: --overwrite replaces it, or choose another --out.")
    if not path.is_dir() or not any((path / marker).exists() for marker in _MARKERS):
        raise OutputError(f"{path} was not made by act, so --overwrite does not delete it. Fix: choose another --out.")


def require_no_overlap(out: Path, inputs: Iterable[Path]) -> None:
    """Raise :class:`OutputError` if ``out`` equals, contains or is inside one of the input folders ``inputs``."""
    for path in inputs:
        target, source = out.resolve(), path.resolve()
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise OutputError(f"--out {out} and its input {path} overlap. Fix: choose another --out.")


def prepare_output(path: Path, *, overwrite: bool, hint: str = "") -> None:
    """Free ``path``, whose lock is held, for a folder that is built there step by step.

    The folder that it replaces is set aside until :func:`finish_output` is called.

    Raises:
        OutputError: ``path`` exists without ``overwrite``, or was not made by this package.
    """
    _check_restored(path, overwrite, hint)
    _set_aside(_real(path))


def finish_output(path: Path) -> None:
    """Delete the folder that the folder at ``path``, which is now complete, has replaced."""
    discard(hidden_sibling(path, "old"), path)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False, is_complete: bool = True, hint: str = "") -> Generator[Path]:
    """Yield an empty folder next to ``path``, which replaces ``path`` when the block ends.

    Until then ``path`` is unchanged, and it remains unchanged if the block raises. If ``is_complete`` is False, the
    replaced folder is kept until :func:`finish_output`.

    Raises:
        OutputError: ``path`` exists without ``overwrite``, was not made by this package, or is being written by another
            process.
    """
    fresh = hidden_sibling(path, "new")
    with locked(path):
        _check_restored(path, overwrite, hint)
        try:
            _delete(fresh)
            fresh.mkdir()
            with require_existing(fresh, path):
                yield fresh
                _set_aside(_real(path))
                fresh.rename(_real(path))
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if is_complete:
            finish_output(path)


def _check_restored(path: Path, overwrite: bool, hint: str) -> None:
    if not overwrite:
        restore_output(path)
    check_output(path, overwrite=overwrite, hint=hint)


def _set_aside(path: Path) -> None:
    """Set aside the folder at ``path``; if it is incomplete and its predecessor still exists, delete it instead."""
    old = hidden_sibling(path, "old")
    if _is_empty(path):
        path.rmdir()
    elif path.exists() and old.exists() and not _is_finished(path):
        discard(path, path)
    elif path.exists():
        finish_output(path)
        path.rename(old)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_finished(path: Path) -> bool:
    """Return True if a folder is marked as complete; a run is never marked."""
    try:
        return bool(read_json(path / "zarr.json")["attributes"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return any((path / name).exists() for name in _COMPLETE)


def restore_output(path: Path) -> None:
    """Restore the folder that was set aside at ``path`` if its replacement does not exist and is not being written."""
    old, real = hidden_sibling(path, "old"), _real(path)
    if old.exists() and not real.exists():
        with suppress(OutputError, OSError), locked(path):
            old.rename(real)


def discard(folder: Path, root: Path) -> None:
    """Delete a folder in or next to the output folder ``root``; it disappears by one rename, even if killed midway."""
    trash = hidden_sibling(root, "trash")
    _delete(trash)
    if folder.exists():
        folder.rename(trash)
        _delete(trash)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _real(path: Path) -> Path:
    """Return the target of a path, so that a link to a folder remains a link when the folder is replaced."""
    return Path(os.path.realpath(path))


def hidden_sibling(path: Path, what: str) -> Path:
    """Return the hidden path next to the target of ``path`` for a purpose ``what``: lock, new, old or trash."""
    return _real(path).with_name(f".{_real(path).name}.act-{what}")


def is_new_folder(path: Path) -> bool:
    """Return True if :func:`new_folder` made the folder at ``path`` and has not yet completed it."""
    return path.name.startswith(".") and path.name.endswith(".act-new")


# -- locks -------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Prevent other processes from writing the folder at ``path``; this process may lock it several times.

    At the end, the folder that was set aside is restored if nothing replaced it.

    Raises:
        OutputError: Another process is writing it, or no folder can be made there.
    """
    real, old = _real(path), hidden_sibling(path, "old")
    if real in _held:
        yield
        return
    with _parents_of(path), _lock_file(path):
        _held.add(real)
        try:
            _delete(hidden_sibling(path, "trash"))
            _delete(hidden_sibling(path, "new"))
            yield
        finally:
            _held.remove(real)
            if old.exists() and not real.exists():
                old.rename(real)


@contextmanager
def _parents_of(path: Path) -> Generator[None]:
    """Make the parent folders of ``path``; remove them again if they remain empty."""
    real = _real(path)
    missing = [parent for parent in real.parents if not parent.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error.strerror}. Fix: choose another --out.") from error
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _lock_file(path: Path) -> Generator[None]:
    """Hold the lock of ``path``, and delete the lock file at the end."""
    lock, fresh = hidden_sibling(path, "lock"), hidden_sibling(path, "new")
    descriptor = _acquire(lock, path)

    def clean_up() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.unlink(missing_ok=True)

    try:
        with interrupts.cleanup_on_interrupt(clean_up):
            yield
    finally:
        if descriptor is not None:
            with interrupts.signals_blocked():
                lock.unlink(missing_ok=True)
                os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int | None:
    """Acquire a lock; return the descriptor of its file, or None if the file system has no locks."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            if path.is_dir() and os.access(path, os.W_OK):  # writable, although it cannot be replaced
                return None
            raise OutputError(f"{path} cannot be written: {error.strerror}. Fix: choose another --out.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                _write_holder(descriptor)
                return descriptor
        except BlockingIOError:
            holder = _describe_holder(lock)
            os.close(descriptor)
            raise OutputError(f"{path} is being written by {holder}") from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks, as some network file systems are
            os.close(descriptor)
            return None
        os.close(descriptor)  # the previous holder has just deleted the file


def _write_holder(descriptor: int) -> None:
    """Write which process holds a lock into the lock's file, if there is space for it."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": ["act", *sys.argv[1:]]}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _describe_holder(lock: Path) -> str:
    """Return which process holds a lock, since when, and how to stop it."""
    try:
        holder = read_json(lock, max_bytes=100_000)
        pid, command = int(holder["pid"]), shlex.join(map(str, holder["command"]))[:200]
        who = f"process {pid} on {holder['host']} since {holder['since']}: {command}"
        return f"{who}. Fix: wait, or stop it: kill {pid}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process, which holds {lock}. Fix: wait, or stop it."
