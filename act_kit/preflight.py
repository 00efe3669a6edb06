"""Checks of input and output paths that every verb runs before slow imports."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from act_kit.errors import ActKitError, CheckpointError, DamagedFileError, DatasetError, OutputError
from act_kit.files import SEEDS, quoted, read_json
from act_kit.outputs import check_output, restore_output

_DATASET_FORMAT = "act_kit.dataset"

_MARKERS = {
    "zarr.json": "dataset",
    "config.yaml": "run",
    SEEDS: "seeds",
    "policy.json": "checkpoint",
    "summary.json": "evaluation",
}
"""File by which a folder is recognized, and its kind."""


def kind_of(path: Path) -> str:
    """Return the kind of folder: dataset, datasets (a folder of them), run, seeds, checkpoint, evaluation, or ""."""
    for marker, kind in _MARKERS.items():
        if (path / marker).exists():
            return kind
    if (path / "checkpoints").exists():
        return "run"
    return "datasets" if any(path.glob("[!.]*/zarr.json")) else ""


def require_datasets(paths: Sequence[Path]) -> list[Path]:
    """Return the datasets at ``paths``, each of which is a dataset or a folder of several.

    Raises:
        DatasetError: A path holds no dataset; the message suggests the command that the user probably meant.
    """
    found = []
    for path in paths:
        restore_output(path)
        folder = quoted(path)
        if not path.exists():
            raise DatasetError(f"There is no dataset at {path}. Fix: act collect --task TASK --out {folder}")
        kind = kind_of(path)
        if kind in ("run", "seeds", "checkpoint"):
            raise DatasetError(
                f"{path} is a run, not a dataset. Fix: give the dataset, or evaluate the run: act eval {folder}"
            )
        if kind == "evaluation":
            raise DatasetError(f"{path} is an evaluation, not a dataset. Fix: give the dataset.")
        for dataset in [path] if kind != "datasets" else sorted(path.glob("[!.]*")):
            if kind != "datasets" or (dataset / "zarr.json").exists():
                _require_dataset(dataset)
                found.append(dataset)
    return found


def require_one_dataset(path: Path) -> None:
    """Raise :class:`DatasetError` unless a single dataset is at ``path``; see :func:`require_datasets`."""
    datasets = require_datasets([path])
    if datasets != [path]:
        raise DatasetError(f"{path} holds {len(datasets)} datasets: expected one. Fix: give one, such as {datasets[0]}")


def _require_dataset(path: Path) -> None:
    try:
        attributes = read_json(path / "zarr.json")["attributes"]
        is_ours = attributes["format"] == _DATASET_FORMAT
    except PermissionError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}. Fix: chmod -R u+r {quoted(path)}") from error
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is not a dataset of act_kit: no zarr v3 group is there.") from error
    except (DamagedFileError, OSError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a dataset of act_kit: its zarr.json has another format.") from error
    if not is_ours:
        raise DatasetError(
            f"{path} is a zarr group, but not a dataset of act_kit (its 'format' is not {_DATASET_FORMAT})."
        )


def require_run(path: Path) -> None:
    """Refuse a path that holds no trained policy.

    Raises:
        CheckpointError: There is none; the message suggests the command that the user probably meant.
    """
    restore_output(path)
    folder, kind = quoted(path), kind_of(path)
    if kind in ("dataset", "datasets"):
        raise CheckpointError(
            f"{path} is a dataset, not a run. Fix: act train --data {folder} --out RUN, then act eval RUN; to inspect "
            f"it: act report {folder}"
        )
    if kind == "seeds":
        raise CheckpointError(f"{path} holds several runs. Fix: give one of them, such as {path / 'seed-0'}")
    if kind == "evaluation":
        raise CheckpointError(f"{path} is an evaluation, not a run. Fix: give the run that it evaluates.")
    folders = (path, path / "checkpoints" / "best", path / "checkpoints" / "last")
    if not any((folder / "policy.json").exists() for folder in folders):
        raise CheckpointError(f"There is no trained policy at {path}. Fix: act train --data DATASET --out {folder}")


def require_file(path: Path, what: str, kind: type[ActKitError]) -> None:
    """Raise an error of type ``kind`` if a file is missing, is not a regular file, or cannot be read."""
    if not path.is_file():
        raise kind(f"{what}={path}: there is no such file.")
    if not os.access(path, os.R_OK):
        raise kind(f"{what}={path}: it cannot be read. Fix: chmod u+r {quoted(path)}")


def require_free(path: Path, *, overwrite: bool, otherwise: str) -> None:
    """Refuse an output folder that cannot be written, or that is not empty unless ``overwrite`` is True.

    Raises:
        OutputError: ``otherwise`` is a sentence about the existing content that the message adds.
    """
    check_output(path, overwrite=overwrite, hint=otherwise)
    require_writable(path)


def require_writable(path: Path, *, fix: str = "choose another --out") -> None:
    """Check that files can be created in a folder, which need not exist yet, by creating a temporary one.

    Raises:
        OutputError: They cannot; the message states the reason and the fix.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing} is a file" if existing.is_file() else f"{existing}: {error.strerror}"
        raise OutputError(f"{path} cannot be written ({reason}). Fix: {fix}.") from error
