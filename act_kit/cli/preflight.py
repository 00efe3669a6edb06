"""What every verb checks before it imports what takes seconds: its inputs can be read, its output can be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from act_kit.errors import ActKitError, CheckpointError, DamagedFileError, DatasetError, OutputError
from act_kit.files import SEEDS, check_output, quoted, read_json, restore_output

_DATASET_FORMAT = "act_kit.dataset"


def kind_of(path: Path) -> str:
    """Return what lies at ``path``: dataset, datasets (a folder of them), run, seeds, checkpoint, evaluation, or ""."""
    markers = {
        "zarr.json": "dataset",
        "config.yaml": "run",
        SEEDS: "seeds",
        "policy.json": "checkpoint",
        "summary.json": "evaluation",
    }
    for marker, kind in markers.items():
        if (path / marker).exists():
            return kind
    if (path / "checkpoints").exists():
        return "run"
    return "datasets" if any(path.glob("[!.]*/zarr.json")) else ""


def require_datasets(paths: list[Path]) -> list[Path]:
    """Return the datasets at ``paths``, each a dataset or a folder of several; refuse paths at which there are none.

    Raises:
        DatasetError: With the command that was probably meant.
    """
    found = []
    for path in paths:
        restore_output(path)
        folder = quoted(path)
        if not path.exists():
            raise DatasetError(f"There is no dataset at {path}. Collect one: act collect --task TASK --out {folder}")
        kind = kind_of(path)
        if kind in ("run", "seeds", "checkpoint"):
            raise DatasetError(f"{path} is a run, not a dataset. Fix: name the dataset; for the run: act eval {folder}")
        if kind == "evaluation":
            raise DatasetError(f"{path} is an evaluation, not a dataset. Fix: name the dataset.")
        for dataset in [path] if kind != "datasets" else sorted(path.glob("[!.]*")):
            if kind != "datasets" or (dataset / "zarr.json").exists():
                _require_dataset(dataset)
                found.append(dataset)
    return found


def _require_dataset(path: Path) -> None:
    try:
        attributes = read_json(path / "zarr.json")["attributes"]
        is_ours = attributes["format"] == _DATASET_FORMAT
    except PermissionError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}. Fix: chmod -R u+r {quoted(path)}") from error
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is not a dataset of act_kit: no zarr v3 group is there.") from error
    except (DamagedFileError, OSError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a dataset of act_kit: its zarr.json is not one of theirs.") from error
    if not is_ours:
        raise DatasetError(
            f"{path} is a zarr group, but not a dataset of act_kit (its 'format' is not {_DATASET_FORMAT})."
        )


def require_run(path: Path) -> None:
    """Refuse a path at which there is no trained policy.

    Raises:
        CheckpointError: With the command that was probably meant.
    """
    restore_output(path)
    folder = quoted(path)
    if kind_of(path) in ("dataset", "datasets"):
        raise CheckpointError(
            f"{path} is a dataset, not a run. Fix: act train --data {folder} --out RUN, then act eval RUN; to look at "
            f"it: act report {folder}"
        )
    if kind_of(path) == "seeds":
        raise CheckpointError(f"{path} holds several runs. Fix: name one, such as {path / 'seed-0'}")
    if kind_of(path) == "evaluation":
        raise CheckpointError(f"{path} is an evaluation, not a run. Fix: name the run that it is of.")
    places = (path, path / "checkpoints" / "best", path / "checkpoints" / "last")
    if not any((place / "policy.json").exists() for place in places):
        raise CheckpointError(
            f"There is no trained policy at {path}. Train one: act train --data DATASET --out {folder}"
        )


def require_file(path: Path, what: str, kind: type[ActKitError]) -> None:
    """Refuse a file that is missing, is no regular file, or cannot be read, with an error of ``kind``."""
    if not path.is_file():
        raise kind(f"{what}={path}: there is no such file.")
    if not os.access(path, os.R_OK):
        raise kind(f"{what}={path}: it cannot be read. Fix: chmod u+r {quoted(path)}")


def require_free(path: Path, *, overwrite: bool, otherwise: str) -> None:
    """Refuse an output folder that holds something, unless that is to be replaced, or that cannot be written.

    Raises:
        OutputError: ``otherwise`` says what else could be done with what is there.
    """
    check_output(path, overwrite=overwrite, how_to_go_on=otherwise)
    require_writable(path)


def require_writable(path: Path, *, fix: str = "choose another --out") -> None:
    """Refuse a folder, there or yet to be made, in which no file can be made: by making one.

    Raises:
        OutputError: With the reason and the fix.
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing} is a file" if existing.is_file() else f"{existing}: {error.strerror}"
        raise OutputError(f"{path} cannot be written ({reason}). Fix: {fix}.") from error
