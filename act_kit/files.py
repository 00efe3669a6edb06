"""Output folders and files: nothing is overwritten unasked, nothing is left half written."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from act_kit.errors import DamagedFileError, OutputError

MAX_TEXT_BYTES = 256 * 2**20
"""Of a text file that is read whole; a day's ``metrics.jsonl`` has a hundredth of it."""

_MAX_YAML_BYTES = 2**20
_MAX_YAML_DEPTH = 20

SEEDS = "seeds.json"
"""What a folder of several runs holds: their training seeds."""

DATASETS = "datasets.json"
"""What a folder of several derived datasets holds: the command that made it, and their paths in it."""

_MARKERS = ("zarr.json", "config.yaml", "summary.json", "demo.json", "act_kit.json", SEEDS, DATASETS)
"""A folder that holds none of these is not one of ours, and is never deleted."""


def prepare_output(path: Path, *, overwrite: bool, how_to_go_on: str = "") -> None:
    """Make sure that ``path`` is free.

    Raises:
        OutputError: Something is there and was not to be overwritten, or is not ours to delete.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path} cannot be made: {error.strerror}. Choose another --out.") from error
        return
    if not overwrite:
        go_on = how_to_go_on and f"{how_to_go_on}, "
        raise OutputError(f"{path} exists. {go_on}--overwrite replaces it, or choose another --out.")
    if not path.is_dir() or not any((path / marker).exists() for marker in _MARKERS):
        raise OutputError(f"{path} was not made by act, so --overwrite does not delete it. Choose another --out.")
    shutil.rmtree(path)


def require_space(path: Path, num_bytes: float, what: str) -> None:
    """Raise :class:`OutputError` unless the file system of ``path`` has ``num_bytes`` free for ``what``."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OutputError(
            f"{what} need about {num_bytes / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free at {existing}. "
            "Free some space, or choose another --out."
        )


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file as UTF-8, whatever the locale.

    Raises:
        FileNotFoundError, PermissionError: It is missing, or not ours to read.
        DamagedFileError: It is no regular file (a pipe would never end), too large, or not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise DamagedFileError(f"{path} is not a regular file.")
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
        return json.loads(text)
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path``, which holds either what it held before or all of it."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path``, which holds either what it held before or all of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")
