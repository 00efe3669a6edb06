"""From one dataset format to another: which one it is, what was lost, and a whole result or none."""

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
from act_kit.files import new_folder, read_json, require_apart, write_json
from act_kit.rollouts.episode import Recording

OURS = "act_kit"
_READERS: dict[str, Callable[[Path, str, Keys], Content]] = {
    OURS: lambda path, task, keys: of_store(EpisodeStore.open(path)),
    "act-hdf5": act_hdf5.read,
    "diffusion-policy": diffusion_policy.read,
}
_WRITERS: dict[str, Callable[[Path, Content], list[str]]] = {
    "act-hdf5": act_hdf5.write,
    "diffusion-policy": diffusion_policy.write,
    "lerobot": lerobot.write,
}
FORMATS = (OURS, *_WRITERS)


def detect(path: Path) -> str:
    """Return the format of what is at ``path``.

    Raises:
        DatasetError: Nothing is there, or nothing that is read.
    """
    if not path.exists():
        raise DatasetError(f"There is nothing at {path}.")
    if path.is_file():
        found = (
            "diffusion-policy" if zipfile.is_zipfile(path) else "act-hdf5" if path.suffix in (".hdf5", ".h5") else ""
        )
    elif (path / "zarr.json").is_file():
        found = OURS if _is_ours(path / "zarr.json") else "diffusion-policy"
    elif (path / ".zgroup").is_file() or (path / "meta" / "episode_ends" / ".zarray").is_file():
        found = "diffusion-policy"
    else:
        found = "act-hdf5" if act_hdf5.find_files(path) else ""
    if not found:
        raise DatasetError(
            f"{path} is in no format that is read: a dataset of act_kit, episode_*.hdf5 of ACT, or a replay buffer of "
            "diffusion policy (a zarr group with meta/episode_ends, or a zip of one)."
        )
    return found


def _is_ours(file: Path) -> bool:
    """Tell datasets of act_kit, damaged ones too, from replay buffers in the same format of zarr."""
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
    """Convert the dataset at ``path`` and return its format, and what it held, with notes on what was lost.

    Args:
        path: A dataset in a format that :func:`detect` knows.
        out: Where to; it is there and whole afterwards, or not there.
        to: One of ``FORMATS``.
        task: What the task is called where the data do not say; "" for the name of ``path``.
        overwrite: Replace what is at ``out``.
        keys: Which arrays of others' data are states and actions.
        on_progress: Called with the number of episodes that are written, and that there are.

    Raises:
        DatasetError: The data are damaged, or not what they must be.
        OutputError: Something is at ``out``, or it and ``path`` overlap.
    """
    if to not in FORMATS:
        raise ConfigError(f"'{to}' is not a format; there are {', '.join(FORMATS)}." + did_you_mean(to, FORMATS))
    require_apart(out, [path])
    origin = detect(path)
    if origin == to:
        raise DatasetError(f"{path} is in this format already: {to}. Choose another with --to.")
    keys = keys or Keys()
    task = task or re.sub(r"[^\w-]+", "-", path.resolve().name.split(".")[0])[:60].strip("-") or "imported"
    content = _READERS[origin](path, task, keys)
    if keys != Keys() and content.fingerprint is not None:
        raise ConfigError(
            f"{path} is data of act_kit, whose states and actions are known. Leave out --state, --action."
        )
    content = replace(content, recordings=_counted(content, on_progress))
    with new_folder(out, overwrite=overwrite, how_to_go_on="Another name keeps it") as fresh:
        if to == OURS:
            _write_ours(path, out, fresh, origin, content, keys)
        else:
            content.notes.extend(_write_theirs(fresh, _WRITERS[to], content))
    return origin, content


def _counted(content: Content, on_progress: Callable[[int, int], None]) -> Iterator[Recording]:
    for num_done, recording in enumerate(content.recordings):
        on_progress(num_done, content.num_episodes)
        yield recording
    on_progress(content.num_episodes, content.num_episodes)


def _write_ours(path: Path, out: Path, fresh: Path, origin: str, content: Content, keys: Keys) -> None:
    parent = {
        "path": str(path),
        "format": origin,
        "made_by": content.info.command or "unknown",
        "fingerprint": _hash_files(path),
        "notes": list(content.notes),
    }
    options = ["--task", content.info.task]
    options += ["--state", keys.state] if keys.state else []
    options += ["--action", keys.action] if keys.action else []
    command = shlex.join(["act", "data", "convert", str(path), str(out), *options])
    info = replace(content.info, command=command, parents=[parent])
    store = write_dataset(fresh, info, content.recordings, attempts=content.attempts, cameras=content.cameras)
    if content.fingerprint not in (None, store.fingerprint):
        content.notes.append("the steps are not those that were exported: they were changed on the way")


def _write_theirs(part: Path, write: Callable[[Path, Content], list[str]], content: Content) -> list[str]:
    episodes: list[Recording] = []
    fields: dict[str, None] = {}

    def noted() -> Iterator[Recording]:
        for recording in content.recordings:
            episodes.append(replace(recording, steps={}, images={}))
            fields.update(dict.fromkeys(recording.steps))
            yield recording

    notes = write(part, replace(content, recordings=noted()))
    write_json(part / SIDECAR, to_json(content, list(fields), episodes))
    return notes


def _hash_files(path: Path) -> str:
    """Return the SHA-256 of all files at ``path``, their names included."""
    digest = hashlib.sha256()
    for file in sorted(file for file in (path, *path.rglob("*")) if file.is_file()):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
