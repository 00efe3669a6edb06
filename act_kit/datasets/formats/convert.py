"""Conversion between dataset formats: format detection, notes on lost data, and atomic output."""

from __future__ import annotations

import hashlib
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from act_kit.datasets.formats import act_hdf5, diffusion_policy, lerobot
from act_kit.datasets.formats.content import SIDECAR, Content, Keys, of_store, to_json
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.errors import ConfigError, DamagedFileError, DatasetError, did_you_mean
from act_kit.files import read_json, write_json
from act_kit.outputs import new_folder, require_no_overlap
from act_kit.rollouts.episode import Episode

ACT_KIT = "act_kit"
_READERS: dict[str, Callable[[Path, str, Keys], Content]] = {
    ACT_KIT: lambda path, task, keys: of_store(EpisodeStore.open(path)),
    "act-hdf5": act_hdf5.read,
    "diffusion-policy": diffusion_policy.read,
}
_WRITERS: dict[str, Callable[[Path, Content], list[str]]] = {
    "act-hdf5": act_hdf5.write,
    "diffusion-policy": diffusion_policy.write,
    "lerobot": lerobot.write,
}
FORMATS = (ACT_KIT, *_WRITERS)


def detect(path: Path) -> str:
    """Return the format of the data at ``path``.

    Raises:
        DatasetError: ``path`` is missing, or its format is not supported.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist: a dataset was expected.")
    if path.is_file():
        found = "act-hdf5" if path.suffix in (".hdf5", ".h5") else ""
        found = "diffusion-policy" if zipfile.is_zipfile(path) else found
    elif (path / "zarr.json").is_file():
        found = ACT_KIT if _is_act_kit(path / "zarr.json") else "diffusion-policy"
    elif (path / ".zgroup").is_file() or (path / "meta" / "episode_ends" / ".zarray").is_file():
        found = "diffusion-policy"
    else:
        found = "act-hdf5" if act_hdf5.find_files(path) else ""
    if not found:
        known = "a dataset of act_kit, episode_*.hdf5 of ACT, or a zarr group or zip with meta/episode_ends"
        raise DatasetError(f"{path} is in no supported format: expected {known}.")
    return found


def _is_act_kit(file: Path) -> bool:
    """Return True for datasets of act_kit, also damaged ones, and False for replay buffers in zarr format 3."""
    try:
        attributes = read_json(file)["attributes"]
        return "format" in attributes or not (file.parent / "meta" / "episode_ends").is_dir()
    except (DamagedFileError, KeyError, TypeError):
        return True


def convert(
    path: Path,
    out: Path,
    *,
    to: str,
    task: str,
    overwrite: bool,
    keys: Keys | None = None,
    on_progress: Callable[[int, int], None] = lambda num_done, num: None,
) -> tuple[str, Content]:
    """Convert the dataset at ``path``, and return its format and its content with notes on lost data.

    Args:
        path: Dataset in a format that :func:`detect` supports.
        out: Output path, written atomically.
        to: One of ``FORMATS``.
        task: Task name for data without one; "" for the name of ``path``.
        overwrite: Replace an existing output.
        keys: Arrays to use as states and actions, for data that act_kit did not write.
        on_progress: Function called with the number of written episodes and the number of all episodes.

    Raises:
        DatasetError: The data is damaged or inconsistent.
        OutputError: ``out`` exists, or overlaps ``path``.
    """
    if to not in FORMATS:
        raise ConfigError(f"'{to}' is not a format; choose from: {', '.join(FORMATS)}." + did_you_mean(to, FORMATS))
    require_no_overlap(out, [path])
    origin = detect(path)
    if origin == to:
        raise DatasetError(f"{path} is already in the format {to}. Fix: choose another with --to.")
    keys = keys or Keys()
    task = task or re.sub(r"[^\w-]+", "-", path.resolve().name.split(".")[0])[:60].strip("-") or "imported"
    content = _READERS[origin](path, task, keys)
    if keys != Keys() and content.fingerprint is not None:
        raise ConfigError(f"{path} has known states and actions. Fix: omit --state and --action.")
    recordings = _with_progress(content, on_progress)
    with new_folder(out, overwrite=overwrite, hint="Another name keeps it") as fresh:
        if to != ACT_KIT:
            content.notes.extend(_WRITERS[to](fresh, replace(content, recordings=recordings)))
            write_json(fresh / SIDECAR, to_json(content))
            return origin, content
        command = ["act", "data", "convert", str(path), str(out), "--task", content.info.task]
        for option, key in (("--state", keys.state), ("--action", keys.action)):
            command += [option, key] if key else []
        parent = {
            "path": str(path),
            "format": origin,
            "made_by": content.info.command or "unknown",
            "fingerprint": _hash_files(path),
            "notes": list(content.notes),
        }
        info = replace(content.info, command=shlex.join(command), parents=[parent])
        store = write_dataset(fresh, info, recordings, attempts=content.attempts, cameras=content.cameras)
        if content.fingerprint not in (None, store.fingerprint):
            content.notes.append("the steps differ from those that were exported: the files were changed")
    return origin, content


def _with_progress(content: Content, on_progress: Callable[[int, int], None]) -> Iterator[Episode]:
    for num_done, recording in enumerate(content.recordings):
        on_progress(num_done, len(content.episodes))
        yield recording
    on_progress(len(content.episodes), len(content.episodes))


def _hash_files(path: Path) -> str:
    """Return the SHA-256 of the names and contents of all files at ``path``."""
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, (path, *path.rglob("*")))):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
