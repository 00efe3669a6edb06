"""Output folders and files: nothing is overwritten unasked, nothing is left half written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from act_kit.errors import OutputError

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


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path``, which holds either what it held before or all of it."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(fresh, path)
