"""Files: names and paths, text, JSON and YAML read with limits, text written atomically, and videos."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit.errors import DamagedFileError, OutputError

if TYPE_CHECKING:
    import numpy as np

MAX_TEXT_BYTES = 256 * 2**20
"""Maximum size of a text file that is read whole; the ``metrics.jsonl`` of a day has a hundredth of it."""

_MAX_YAML_BYTES = 2**20
_MAX_YAML_DEPTH = 20

SEEDS = "seeds.json"
"""Name of the file with the training seeds, in a folder of several runs."""

DATASETS = "datasets.json"
"""Name of the file with the command and the datasets' relative paths, in a folder of several derived datasets."""

_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
_MAX_NAME_BYTES = 200
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def quoted(path: str | Path) -> str:
    """Return a path quoted for a shell."""
    return shlex.quote(str(path))


def sibling(path: Path, suffix: str) -> Path:
    """Return the path next to ``path`` whose name has a suffix; ``.`` and ``..`` stand for the folders they lead to."""
    named = path.resolve() if path.name in ("", "..") else path
    return named.with_name(named.name + suffix)


def next_free_path(path: Path) -> Path:
    """Return ``path`` with a suffix ``-2``, ``-3``, …: the first such path that does not exist."""
    for number in itertools.count(2):
        candidate = sibling(path, f"-{number}")
        if not candidate.exists():
            break
    return candidate


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


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values atomically as YAML."""
    from omegaconf import OmegaConf

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(values))))


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


def temporary_path(path: Path) -> Path:
    """Return the temporary file that :func:`write_text` renames to ``path``; a kill may leave it behind."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` atomically."""
    fresh = temporary_path(path)
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float, **options: Any) -> None:
    """Write frames, uint8 (H, W, 3) each, as H.264, with options of imageio's ffmpeg writer."""
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any
    with imageio.get_writer(path, fps=fps, codec="libx264", **options) as writer:
        for frame in frames:
            writer.append_data(frame)
