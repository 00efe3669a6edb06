"""From one dataset format to another: which one it is, what was lost, and a whole result or none."""

from __future__ import annotations

import hashlib
import shlex
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from act_kit.datasets.episode import Recording
from act_kit.datasets.formats import act_hdf5, diffusion_policy, lerobot
from act_kit.datasets.formats.content import SIDECAR, Content, of_store, to_json
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.errors import ConfigError, DatasetError, OutputError, did_you_mean
from act_kit.files import new_folder, write_json

OURS = "act_kit"
_READERS: dict[str, Callable[[Path, str], Content]] = {
    OURS: lambda path, task: of_store(EpisodeStore.open(path)),
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
        found = OURS
    elif (path / ".zgroup").is_file():
        found = "diffusion-policy"
    else:
        found = "act-hdf5" if act_hdf5.find_files(path) else ""
    if not found:
        raise DatasetError(
            f"{path} is in no format that is read: a dataset of act_kit, episode_*.hdf5 of ACT, or a replay buffer of "
            "diffusion policy (a folder with .zgroup, or a zip of one)."
        )
    return found


def convert(
    path: Path,
    out: Path,
    *,
    to: str,
    task: str,
    overwrite: bool,
    on_progress: Callable[[int, int], None] = lambda num_done, num: None,
) -> tuple[str, Content]:
    """Convert the dataset at ``path`` and return its format, and what it held, with notes on what was lost.

    Args:
        path: A dataset in a format that :func:`detect` knows.
        out: Where to; it is there and whole afterwards, or not there.
        to: One of ``FORMATS``.
        task: What the task is called where the data do not say; "" for the name of ``path``.
        overwrite: Replace what is at ``out``.
        on_progress: Called with the number of episodes that are written, and that there are.

    Raises:
        DatasetError: The data are damaged, or not what they must be.
        OutputError: Something is at ``out``, or it and ``path`` are in each other.
    """
    if to not in FORMATS:
        raise ConfigError(f"'{to}' is not a format; there are {', '.join(FORMATS)}." + did_you_mean(to, FORMATS))
    ends = out.resolve(), path.resolve()
    if ends[0] == ends[1] or ends[0] in ends[1].parents or ends[1] in ends[0].parents:
        raise OutputError(f"{out} and {path} are in one another. Choose another output.")
    origin = detect(path)
    if origin == to:
        raise DatasetError(f"{path} is in this format already: {to}. Choose another with --to.")
    content = _READERS[origin](path, task or path.resolve().name.split(".")[0])
    content = replace(content, recordings=_counted(content, on_progress))
    with new_folder(out, overwrite=overwrite, how_to_go_on="Another name keeps it") as fresh:
        if to == OURS:
            _write_ours(path, out, fresh, origin, content)
        else:
            content.notes.extend(_write_theirs(fresh, _WRITERS[to], content))
    return origin, content


def _counted(content: Content, on_progress: Callable[[int, int], None]) -> Iterator[Recording]:
    for num_done, recording in enumerate(content.recordings):
        on_progress(num_done, content.num_episodes)
        yield recording
    on_progress(content.num_episodes, content.num_episodes)


def _write_ours(path: Path, out: Path, fresh: Path, origin: str, content: Content) -> None:
    parent = {
        "path": str(path),
        "format": origin,
        "made_by": content.info.command or "unknown",
        "fingerprint": _hash_files(path),
    }
    command = shlex.join(["act", "data", "convert", str(path), str(out), "--task", content.info.task])
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
