"""Output folders and files: nothing is overwritten unasked, nothing is left half written, no two processes write the
same folder.

Beside a folder ``NAME`` that is being written stand hidden siblings, whose names say what a kill may leave behind:

- ``.NAME.act-lock``: held by the process that writes; the kernel frees it when that process ends, however it ends.
- ``.NAME.act-new``: a new folder that is not complete; the next writer deletes it.
- ``.NAME.act-old``: what ``--overwrite`` replaces; it is deleted once the new folder is complete.
- ``.NAME.act-trash``: what is being deleted; the next writer goes on deleting it.
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
"""Of a text file that is read whole; a day's ``metrics.jsonl`` has a hundredth of it."""

_MAX_YAML_BYTES = 2**20
_MAX_YAML_DEPTH = 20

SEEDS = "seeds.json"
"""What a folder of several runs holds: their training seeds."""

DATASETS = "datasets.json"
"""What a folder of several derived datasets holds: the command that made it, and their paths in it."""

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
"""A folder that holds none of these is not one of ours, and is never deleted."""

_COMPLETE = ("summary.json", "act_kit.json", "view.html", DATASETS)
"""What is only there in folders that appear whole."""

_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
_MAX_NAME_BYTES = 200
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_held: set[Path] = set()
"""The folders whose locks this process holds."""


# -- output folders ----------------------------------------------------------------------------------------------------


def quoted(path: str | Path) -> str:
    """Return a path as it is typed in a shell."""
    return shlex.quote(str(path))


def free_beside(path: Path) -> Path:
    """Return ``path`` with the first number behind its name, from 2 on, that is free."""
    return next(
        beside for number in itertools.count(2) if not (beside := path.with_name(f"{path.name}-{number}")).exists()
    )


def check_output(path: Path, *, overwrite: bool, how_to_go_on: str = "") -> None:
    """Raise :class:`OutputError` if something is at ``path`` that was not to be overwritten, or is not ours."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        go_on = how_to_go_on and f"{how_to_go_on}, "
        raise OutputError(f"{path} exists. {go_on}--overwrite replaces it, or choose another --out.")
    if not path.is_dir() or not any((path / marker).exists() for marker in _MARKERS):
        raise OutputError(f"{path} was not made by act, so --overwrite does not delete it. Choose another --out.")


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise :class:`OutputError` if ``out`` is, holds or lies in one of ``inputs``, which are read to make it."""
    for path in inputs:
        ends = out.resolve(), path.resolve()
        if ends[0] == ends[1] or ends[0] in ends[1].parents or ends[1] in ends[0].parents:
            raise OutputError(f"--out {out} and {path}, which it is made of, overlap. Choose another --out.")


def prepare_output(path: Path, *, overwrite: bool, how_to_go_on: str = "") -> None:
    """Make sure that ``path``, whose lock is held, is free for a folder that is built there, step by step.

    What it replaces is set aside until :func:`finish_output` says that the new folder is complete.

    Raises:
        OutputError: Something is there and was not to be overwritten, or is not ours to delete.
    """
    if not overwrite:
        restore_output(path)
    check_output(path, overwrite=overwrite, how_to_go_on=how_to_go_on)
    _set_aside(_real(path))


def finish_output(path: Path) -> None:
    """Delete what the folder at ``path``, which is complete now, has replaced."""
    discard(hidden_sibling(_real(path), "old"), path)


@contextmanager
def new_folder(
    path: Path, *, overwrite: bool = False, is_complete: bool = True, how_to_go_on: str = ""
) -> Generator[Path]:
    """Yield an empty folder beside ``path``, which takes the place of ``path`` when the block ends.

    Until then ``path`` is what it was, and so it stays if the block raises. ``is_complete`` says that the new folder
    then needs no more work; otherwise what it replaces is kept until :func:`finish_output`.

    Raises:
        OutputError: Something is there and was not to be overwritten, or is not ours to delete, or another process
            writes it.
    """
    real = _real(path)
    fresh = hidden_sibling(real, "new")
    with locked(path):
        if not overwrite:
            restore_output(path)
        check_output(path, overwrite=overwrite, how_to_go_on=how_to_go_on)
        try:
            _delete(fresh)
            fresh.mkdir()
            with still_there(fresh, path):
                yield fresh
                _set_aside(real)
                fresh.rename(real)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if is_complete:
            finish_output(path)


def _set_aside(path: Path) -> None:
    """Rename what is at ``path``; but if that is incomplete and what it was to replace is still there, delete it."""
    old = hidden_sibling(path, "old")
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.exists() and old.exists() and not _is_finished(path):
        discard(path, path)
    elif path.exists():
        finish_output(path)
        path.rename(old)


def _is_finished(path: Path) -> bool:
    """Return whether a folder says of itself that it is complete; a run does not."""
    try:
        return bool(read_json(path / "zarr.json")["attributes"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return any((path / name).exists() for name in _COMPLETE)


def restore_output(path: Path) -> None:
    """Put back what was set aside for a new folder of which nothing exists, unless a process is making that now."""
    real = _real(path)
    old = hidden_sibling(real, "old")
    if old.exists() and not real.exists():
        with suppress(OutputError, OSError), locked(path):
            old.rename(real)


def discard(folder: Path, root: Path) -> None:
    """Delete a folder in or beside the output folder ``root``: by one rename for whoever looks, whatever kills it."""
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
    """Return where a path leads: a link to a folder stays a link, whatever becomes of the folder."""
    return Path(os.path.realpath(path))


def hidden_sibling(path: Path, what: str) -> Path:
    """Return the hidden path beside ``path`` for its lock, or for what is new, old, or trash."""
    return path.parent / f".{path.name}.act-{what}"


def is_new_folder(path: Path) -> bool:
    """Return whether :func:`new_folder` made the folder at ``path``: nobody takes it for complete."""
    return path.name.startswith(".") and path.name.endswith(".act-new")


@contextmanager
def still_there(folder: Path, shown: Path | None = None) -> Generator[None]:
    """Say so where an error in the block comes of the folder's having been deleted by somebody else.

    Raises:
        OutputError: Of ``folder``, which the message calls ``shown``.
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
    """Let no other process write the folder at ``path`` meanwhile; this process may lock it several times.

    Raises:
        OutputError: Another process writes it; or no folder can be made there.
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
    """Make the folders that ``path`` lies in; remove them again if nothing came of it."""
    real = _real(path)
    missing = [parent for parent in real.parents if not parent.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error.strerror}. Choose another --out.") from error
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _lock_file(path: Path) -> Generator[None]:
    """Hold the lock of ``path``; leave no file behind."""
    lock = hidden_sibling(_real(path), "lock")
    fresh = hidden_sibling(_real(path), "new")
    descriptor = _take(lock, path)

    def leave_nothing() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.unlink(missing_ok=True)

    try:
        with interrupts.cleaned_up_by(leave_nothing):
            yield
    finally:
        if descriptor is not None:
            with interrupts.held():
                lock.unlink(missing_ok=True)
                os.close(descriptor)


def _take(lock: Path, path: Path) -> int | None:
    """Return the descriptor of the lock's file, or None where the file system has no locks."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            if path.is_dir() and os.access(path, os.W_OK):  # which may be written, though it cannot be replaced
                return None
            raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                _sign(descriptor)
                return descriptor
        except BlockingIOError:
            who = _holder(lock)
            os.close(descriptor)
            raise OutputError(f"{path} is being written by {who}") from None
        except FileNotFoundError:
            pass
        except OSError:  # no locks here, as on some network file systems
            os.close(descriptor)
            return None
        os.close(descriptor)  # whoever held it has just deleted it


def _sign(descriptor: int) -> None:
    """Write who holds the lock into it; a full disk is no reason not to hold it."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": ["act", *sys.argv[1:]]}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)


def _holder(lock: Path) -> str:
    """Say who holds a lock, since when, and how to end it."""
    try:
        who = read_json(lock, max_bytes=100_000)
        command = shlex.join(map(str, who["command"]))
        pid = int(who["pid"])
        return (
            f"process {pid} on {who['host']} since {who['since']}: {command[:200]}. Fix: wait, or stop it: kill {pid}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process, which holds {lock}. Fix: wait, or stop it."


# -- files -------------------------------------------------------------------------------------------------------------


def check_name(name: str, what: str) -> str:
    """Return a name that a file gave, if a folder may be called so: nothing is written where a file says.

    Raises:
        DamagedFileError: It could lead somewhere else.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise DamagedFileError(
            f"{name[:80]!r} cannot be the name of a {what}: up to {_MAX_NAME_BYTES} bytes without / were expected."
        )
    return name


def require_space(path: Path, num_bytes: float, what: str) -> None:
    """Raise :class:`OutputError` unless the file system of ``path`` has ``num_bytes`` free for ``what``."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OutputError(
            f"{what} need about {num_bytes / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free at {existing}. "
            "Free some space, or choose another --out."
        )


def require_regular(path: Path) -> os.stat_result:
    """Return what the system knows of a regular file.

    Raises:
        FileNotFoundError, PermissionError: It is missing, or not ours to look at.
        DamagedFileError: It is a folder, a pipe, a device, or a link that leads to itself.
    """
    try:
        about = path.stat()
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}.") from error
    if not stat.S_ISREG(about.st_mode):
        raise DamagedFileError(f"{path} is not a regular file.")
    return about


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file as UTF-8, whatever the locale.

    Raises:
        FileNotFoundError, PermissionError: It is missing, or not ours to read.
        DamagedFileError: It is no regular file (a pipe would never end), too large, or not UTF-8.
    """
    about = require_regular(path)
    with path.open("rb") as file:
        if about.st_size > max_bytes:
            raise DamagedFileError(f"{path} has {about.st_size} bytes; at most {max_bytes} were expected.")
        content = file.read(max_bytes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def read_json(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file; see :func:`read_text` for what is refused beside text that is not JSON."""
    text = read_text(path, max_bytes=max_bytes)
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character can be written nowhere
        return value
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not JSON: {error}.") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values; see :func:`read_text` for what is refused beside text that is not YAML.

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
    """Return what :func:`write_text` writes to before it renames it to ``path``; a kill may leave it behind."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path``, which holds either what it held before or all of it."""
    fresh = unfinished(path)
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path``, which holds either what it held before or all of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")
