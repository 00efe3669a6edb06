"""Conversion between dataset formats: format detection, notes on lost data, and atomic output."""

from __future__ import annotations

import hashlib
import re
import shlex
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.formats import act_hdf5, diffusion_policy, lerobot
from act_kit.datasets.formats.content import SIDECAR, Content, Keys, of_store, to_json
from act_kit.datasets.formats.lerobot.metadata import INFO
from act_kit.datasets.formats.looks import match_looks
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.errors import ConfigError, DamagedFileError, DatasetError, did_you_mean
from act_kit.files import DATASETS, quoted, read_json, write_json
from act_kit.outputs import new_folder, require_no_overlap
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import InitialState

ACT_KIT = "act_kit"
_READERS: dict[str, Callable[[Path, str, str, Keys], Sequence[Content]]] = {
    ACT_KIT: lambda path, task, default, keys: [of_store(EpisodeStore.open(path))],
    "act-hdf5": lambda path, task, default, keys: [act_hdf5.read(path, task or default, keys)],
    "diffusion-policy": lambda path, task, default, keys: [diffusion_policy.read(path, task or default, keys)],
    "lerobot": lerobot.read,
}
"""Readers of a path, a task ("" for the data's own), a name for the task of data without one, and keys."""
_WRITERS: dict[str, Callable[[Path, Content], list[str]]] = {
    "act-hdf5": act_hdf5.write,
    "diffusion-policy": diffusion_policy.write,
    "lerobot": lerobot.write,
}
FORMATS = (ACT_KIT, *_WRITERS)

Recover = Callable[[str, np.ndarray], np.ndarray | None]
"""Function that computes the initial states, (N, 3 or 6), of a task from first states, (N, 39); None if it cannot."""


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
    elif (path / INFO).is_file():
        found = "lerobot"
    elif (path / "zarr.json").is_file():
        found = ACT_KIT if _is_act_kit(path / "zarr.json") else "diffusion-policy"
    elif (path / ".zgroup").is_file() or (path / "meta" / "episode_ends" / ".zarray").is_file():
        found = "diffusion-policy"
    else:
        found = "act-hdf5" if act_hdf5.find_files(path) else ""
    if not found:
        known = (
            "a dataset of act_kit, episode_*.hdf5 of ACT, a zarr group or zip with meta/episode_ends, or a LeRobot "
            f"dataset with {INFO}"
        )
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
    recover: Recover = lambda task, first_states: None,
    on_progress: Callable[[int, int], None] = lambda num_done, num: None,
) -> tuple[str, list[Content]]:
    """Convert the dataset at ``path``, and return its format and its contents with notes on lost data.

    The output is one dataset, or for a LeRobot dataset of several tasks a folder of datasets, one per task.

    Args:
        path: Dataset in a format that :func:`detect` supports.
        out: Output path, written atomically.
        to: One of ``FORMATS``.
        task: Task name for data without one, "" for the name of ``path``; of a LeRobot dataset the task to convert, ""
            for all.
        overwrite: Replace an existing output.
        keys: Arrays to use as states and actions, for data that act_kit did not write.
        recover: Computes the initial states that data of Meta-World do not name.
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
    default = re.sub(r"[^\w-]+", "-", path.resolve().name.split(".")[0])[:60].strip("-") or "imported"
    contents = list(_READERS[origin](path, task, default, keys))
    if contents[0].fingerprint is not None:
        _require_known(path, contents[0].info.task, task, keys)
    if to != ACT_KIT and len(contents) > 1:
        tasks = ", ".join(content.info.task for content in contents)
        raise DatasetError(f"{path} has {len(contents)} tasks; --to {to} writes one. Fix: --task, one of {tasks}")
    contents = [_with_init_states(content, recover) for content in contents]
    contents = _with_progress(contents, on_progress)
    with new_folder(out, overwrite=overwrite, hint="Another name keeps it") as fresh:
        if to != ACT_KIT:
            content = match_looks(contents[0])
            content.notes.extend(_WRITERS[to](fresh, content))
            write_json(fresh / SIDECAR, to_json(content))
            return origin, [content]
        command = ["act", "data", "convert", str(path), str(out)]
        options: list[str] = []
        for option, key in (("--state", keys.state), ("--action", keys.action)):
            options += [option, key] if key else []
        fingerprint = _hash_files(path)
        converted: list[Content] = []
        for imported in contents:
            content = match_looks(imported)  # reads the images of an episode: of one task at a time
            parent = {"path": str(path), "format": origin, "fingerprint": fingerprint}
            folder = fresh / content.info.task if len(contents) > 1 else fresh
            _write(folder, content, [*command, "--task", task or content.info.task, *options], parent)
            converted.append(content)
        if len(contents) > 1:
            names = [content.info.task for content in contents]
            write_json(fresh / DATASETS, {"command": shlex.join([*command, *options]), "datasets": names})
    return origin, converted


def _require_known(path: Path, known: str, task: str, keys: Keys) -> None:
    """Refuse options that would change data of act_kit, of the task ``known``."""
    if keys != Keys():
        raise ConfigError(f"{path} has known states and actions. Fix: omit --state and --action.")
    if task not in ("", known):
        raise ConfigError(f"{path} holds {known}, which --task {quoted(task)} cannot change. Fix: omit --task.")


def _write(path: Path, content: Content, command: list[str], parent: Any) -> None:
    """Write a dataset of act_kit; add a note if its steps are not those that were exported."""
    parent |= {"made_by": content.info.command or "unknown", "notes": [*content.notes, *content.warnings]}
    if content.num_clipped is not None:
        parent |= {"clipped_actions": content.num_clipped, "clipped_episodes": content.num_clipped_episodes}
    info = replace(content.info, command=shlex.join(command), parents=[parent])
    path.mkdir(exist_ok=True)
    store = write_dataset(path, info, content.recordings, attempts=content.attempts, cameras=content.cameras)
    if content.fingerprint not in (None, store.fingerprint):
        content.notes.append("the steps differ from those that were exported: the files were changed")


def _with_init_states(content: Content, recover: Recover) -> Content:
    """Return the content with the initial states that follow from the first states, or with a note that they do not."""
    if content.first_states is None:
        return content
    rand_vecs = recover(content.info.task, content.first_states)
    if rand_vecs is None:
        reason = "the first observations do not determine them"
        num_hidden = int((content.first_states[:, 36:] == 0).all(axis=1).sum())
        if num_hidden:
            num = len(content.episodes)
            reason = f"the goal is hidden in {num_hidden} of {num} episodes: the last three numbers are zero"
        return replace(content, notes=[*content.notes, f"the initial states are unknown: {reason}"])
    init_states = [InitialState.of(content.info.task, rand_vec) for rand_vec in rand_vecs]

    def with_init_states(episodes: Iterable[Episode]) -> Iterator[Episode]:
        for episode, init_state in zip(episodes, init_states, strict=True):
            yield replace(episode, init_state=init_state)

    return replace(
        content,
        episodes=list(with_init_states(content.episodes)),
        recordings=with_init_states(content.recordings),
        notes=[*content.notes, "the initial states are computed from the first observations"],
    )


def _with_progress(contents: Sequence[Content], on_progress: Callable[[int, int], None]) -> list[Content]:
    """Return contents whose recordings report how many episodes of all contents are written."""
    num = sum(len(content.episodes) for content in contents)

    def episodes(content: Content, num_before: int) -> Iterator[Episode]:
        for num_done, recording in enumerate(content.recordings, start=num_before):
            on_progress(num_done, num)
            yield recording
        on_progress(num_before + len(content.episodes), num)

    reporting: list[Content] = []
    num_before = 0
    for content in contents:
        reporting.append(replace(content, recordings=episodes(content, num_before)))
        num_before += len(content.episodes)
    return reporting


def _hash_files(path: Path) -> str:
    """Return the SHA-256 of the names and contents of all files at ``path``."""
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, (path, *path.rglob("*")))):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
