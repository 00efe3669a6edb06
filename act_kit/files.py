"""Output folders and files, written atomically: no overwriting without permission, no half-written folder, and one
writing process per folder.

While a folder ``NAME`` is being written, these hidden siblings exist next to it; a kill may leave them behind:

- ``.NAME.act-lock``: The lock of the writing process. The kernel frees it when that process ends for any reason.
- ``.NAME.act-new``: A new, incomplete folder. The next writer deletes it.
- ``.NAME.act-old``: The folder that ``--overwrite`` replaces. It is deleted once the new folder is complete.
- ``.NAME.act-trash``: A folder that is being deleted. The next writer finishes the deletion.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from act_kit import interrupts
from act_kit.errors import DamagedFileError, OutputError

MAX_TEXT_BYTES = 256 * 2**20
"""Maximum size of a text file that is read whole; the ``metrics.jsonl`` of a day has a hundredth of it."""

_MAX_YAML_BYTES = 2**20
_MAX_YAML_DEPTH = 20

SEEDS = "seeds.json"
"""Name of the file with the training seeds, in a folder of several runs."""

DATASETS = "datasets.json"
"""Name of the file with the command and the datasets' relative paths, in a folder of several derived datasets."""

_MARKERS = (
    "zarr.json",
    "config.yaml",
    "summary.json",
    "init_states.json",
    "demo.json",
    "act_kit.json",
    "view.html",
    SEEDS,
    DATASETS,
)
"""A folder without any of these files was not made by this package and is never deleted."""

_COMPLETE = ("summary.json", "act_kit.json", "view.html", DATASETS)
"""Files that exist only in complete folders."""

_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
_MAX_NAME_BYTES = 200
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_held: set[Path] = set()
"""Folders whose locks this process holds."""


# -- output folders ----------------------------------------------------------------------------------------------------


def quoted(path: str | Path) -> str:
    """Return a path quoted for a shell."""
    return shlex.quote(str(path))


def next_free_path(path: Path) -> Path:
    """Return ``path`` with a suffix ``-2``, ``-3``, …: the first such path that does not exist."""
    for number in itertools.count(2):
        candidate = path.with_name(f"{path.name}-{number}")
        if not candidate.exists():
            break
    return candidate


def check_output(path: Path, *, overwrite: bool, hint: str = "") -> None:
    """Raise :class:`OutputError` if ``path`` exists without ``overwrite``, or was not made by this package.

    ``hint`` is a sentence, without a final period, that the error message adds.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        hint = hint and f"{hint}. "
        raise OutputError(f"{path} exists. {hint}Fix: --overwrite replaces it, or choose another --out.")
    if not path.is_dir() or not any((path / marker).exists() for marker in _MARKERS):
        raise OutputError(f"{path} was not made by act, so --overwrite does not delete it. Fix: choose another --out.")


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise :class:`OutputError` if ``out`` equals, contains or is inside one of the input folders ``inputs``."""
    for path in inputs:
        target, source = out.resolve(), path.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise OutputError(f"--out {out} and its input {path} overlap. Fix: choose another --out.")


def prepare_output(path: Path, *, overwrite: bool, hint: str = "") -> None:
    """Free ``path``, whose lock is held, for a folder that is built there step by step.

    The folder that it replaces is set aside until :func:`finish_output` is called.

    Raises:
        OutputError: ``path`` exists without ``overwrite``, or was not made by this package.
    """
    if not overwrite:
        restore_output(path)
    check_output(path, overwrite=overwrite, hint=hint)
    _set_aside(_real(path))


def finish_output(path: Path) -> None:
    """Delete the folder that the folder at ``path``, which is now complete, has replaced."""
    discard(hidden_sibling(_real(path), "old"), path)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False, is_complete: bool = True, hint: str = "") -> Generator[Path]:
    """Yield an empty folder next to ``path``, which replaces ``path`` when the block ends.

    Until then ``path`` is unchanged, and it remains unchanged if the block raises. If ``is_complete`` is False, the
    replaced folder is kept until :func:`finish_output`.

    Raises:
        OutputError: ``path`` exists without ``overwrite``, was not made by this package, or is being written by another
            process.
    """
    real = _real(path)
    fresh = hidden_sibling(real, "new")
    with locked(path):
        if not overwrite:
            restore_output(path)
        check_output(path, overwrite=overwrite, hint=hint)
        try:
            _delete(fresh)
            fresh.mkdir()
            with require_existing(fresh, path):
                yield fresh
                _set_aside(real)
                fresh.rename(real)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if is_complete:
            finish_output(path)


def _set_aside(path: Path) -> None:
    """Set aside the folder at ``path``; if it is incomplete and its predecessor still exists, delete it instead."""
    old = hidden_sibling(path, "old")
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.exists() and old.exists() and not _is_finished(path):
        discard(path, path)
    elif path.exists():
        finish_output(path)
        path.rename(old)


def _is_finished(path: Path) -> bool:
    """Return True if a folder is marked as complete; a run is never marked."""
    try:
        return bool(read_json(path / "zarr.json")["attributes"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return any((path / name).exists() for name in _COMPLETE)


def restore_output(path: Path) -> None:
    """Restore the folder that was set aside at ``path`` if its replacement does not exist and is not being written."""
    real = _real(path)
    old = hidden_sibling(real, "old")
    if old.exists() and not real.exists():
        with suppress(OutputError, OSError), locked(path):
            old.rename(real)


def discard(folder: Path, root: Path) -> None:
    """Delete a folder in or next to the output folder ``root``; it disappears by one rename, even if killed midway."""
    trash = hidden_sibling(_real(root), "trash")
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
    """Return the hidden path next to ``path`` for a purpose ``what``: lock, new, old or trash."""
    return path.parent / f".{path.name}.act-{what}"


def is_new_folder(path: Path) -> bool:
    """Return True if :func:`new_folder` made the folder at ``path`` and has not yet completed it."""
    return path.name.startswith(".") and path.name.endswith(".act-new")


@contextmanager
def require_existing(folder: Path, shown: Path | None = None) -> Generator[None]:
    """Replace an error in the block by an :class:`OutputError` if the folder was deleted meanwhile.

    Raises:
        OutputError: ``folder`` no longer exists. The message names it as ``shown``, if given.
    """
    try:
        yield
    except (OSError, KeyError) as error:
        if folder.exists():
            raise
        raise OutputError(
            f"{shown or folder} was deleted or moved while it was being written. Fix: give the command again."
        ) from error


# -- locks -------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Prevent other processes from writing the folder at ``path``; this process may lock it several times.

    Raises:
        OutputError: Another process is writing it, or no folder can be made there.
    """
    real = _real(path)
    if real in _held:
        yield
        return
    with _parents_of(path), _lock_file(path):
        _held.add(real)
        try:
            _delete(hidden_sibling(real, "trash"))
            _delete(hidden_sibling(real, "new"))
            yield
        finally:
            _held.remove(real)
            if hidden_sibling(real, "old").exists() and not real.exists():
                hidden_sibling(real, "old").rename(real)


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
    lock = hidden_sibling(_real(path), "lock")
    fresh = hidden_sibling(_real(path), "new")
    descriptor = _acquire(lock, path)

    def clean_up() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.unlink(missing_ok=True)

    try:
        with interrupts.cleaned_up_by(clean_up):
            yield
    finally:
        if descriptor is not None:
            with interrupts.held():
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
        command = shlex.join(map(str, holder["command"]))[:200]
        pid = int(holder["pid"])
        return (
            f"process {pid} on {holder['host']} since {holder['since']}: {command}. Fix: wait, or stop it: kill {pid}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process, which holds {lock}. Fix: wait, or stop it."


# -- files -------------------------------------------------------------------------------------------------------------


def check_name(name: str, what: str) -> str:
    """Return ``name``, which was read from a file, if it is safe as the name of a folder.

    Raises:
        DamagedFileError: The name could lead to another folder, or is too long.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise DamagedFileError(
            f"{name[:80]!r} cannot be the name of a {what}: at most {_MAX_NAME_BYTES} bytes without / were expected."
        )
    return name


def require_space(path: Path, num_bytes: float, what: str) -> None:
    """Raise :class:`OutputError` unless the file system of ``path`` has ``num_bytes`` free for ``what``."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OutputError(
            f"{what} need about {num_bytes / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free at {existing}. "
            "Fix: free some space, or choose another --out."
        )


def require_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        FileNotFoundError, PermissionError: It is missing or inaccessible.
        DamagedFileError: It is a folder, a pipe, a device, or a link to itself.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFileError(f"{path} is not a regular file.")
    return status


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file as UTF-8, independent of the locale.

    Raises:
        FileNotFoundError, PermissionError: It is missing or inaccessible.
        DamagedFileError: It is not a regular file (a pipe would never end), too large, or not UTF-8.
    """
    status = require_regular(path)
    with path.open("rb") as file:
        if status.st_size > max_bytes:
            raise DamagedFileError(f"{path} has {status.st_size} bytes; at most {max_bytes} were expected.")
        content = file.read(max_bytes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def read_json(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file; raise the errors of :func:`read_text`, and :class:`DamagedFileError` if it is not JSON."""
    text = read_text(path, max_bytes=max_bytes)
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # an unpaired surrogate cannot be encoded as UTF-8
        return value
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not JSON: {error}.") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values; raise the errors of :func:`read_text`, and DamagedFileError if it is not YAML.

    Aliases are refused: nine levels of them expand to more than any memory holds.
    """
    import yaml

    text = read_text(path, max_bytes=_MAX_YAML_BYTES)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise DamagedFileError(f"{path} has a YAML alias (*{event.anchor}), which act never writes.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_YAML_DEPTH:
                raise DamagedFileError(f"{path} is nested more than {_MAX_YAML_DEPTH} levels deep.")
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error


def unfinished(path: Path) -> Path:
    """Return the temporary file that :func:`write_text` renames to ``path``; a kill may leave it behind."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` atomically."""
    fresh = unfinished(path)
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")
