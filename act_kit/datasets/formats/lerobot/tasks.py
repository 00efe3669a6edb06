"""Tasks of the episodes of a LeRobot dataset: which of Meta-World's tasks a sentence or a name means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from act_kit.datasets.formats.content import some
from act_kit.datasets.formats.lerobot.metadata import EpisodeEntry
from act_kit.errors import DatasetError, did_you_mean
from act_kit.sim.sentences import find_tasks
from act_kit.sim.tasks import TASKS

_OBJECT_XY = slice(4, 6)
"""Position of the first object in Meta-World's observation, and the first two numbers of an initial state."""
_BOX_MARGIN_M = 0.02
_VERSION_2 = re.compile(r"(.+)-v2(-goal-(observable|hidden))?")

FirstState = Callable[[EpisodeEntry], np.ndarray | None]
"""Function that reads the first observation of an episode, (39,), or returns None if the dataset does not have it."""


def group_by_task(
    path: Path, episodes: Sequence[EpisodeEntry], task: str, default: str, first_state: FirstState
) -> tuple[dict[str, list[EpisodeEntry]], list[str]]:
    """Group episodes by task.

    Args:
        path: Folder of the dataset, for messages.
        episodes: All episodes.
        task: Task to select: a name of Meta-World, or a sentence of the dataset; "" for all.
        default: Name of the task of a dataset with a single one that Meta-World does not have.
        first_state: Tells apart the tasks that share a sentence, by the position of their object.

    Returns:
        Episodes by task, in order of appearance, and notes on assumptions.

    Raises:
        DatasetError: No episode is of ``task``, or a task is unknown or ambiguous.
    """
    meant: dict[str, list[str]] = {}
    for episode in episodes:
        if episode.sentence not in meant:
            meant[episode.sentence] = _tasks_of(episode.sentence)
    unknown = [sentence for sentence, tasks in meant.items() if not tasks]
    if unknown and (len(meant) == 1 or task in unknown):
        return _of_unknown_task(episodes, unknown[0] if len(meant) == 1 else task, task or default)
    wanted = "" if not task else next(iter(_tasks_of(task)), task)
    _check_tasks(path, meant, unknown, wanted)
    groups: dict[str, list[EpisodeEntry]] = {}
    num_unclear = 0
    for episode in episodes:
        candidates = meant[episode.sentence]
        if wanted and wanted not in candidates:
            continue
        name = candidates[0] if len(candidates) == 1 else _by_object(candidates, first_state(episode))
        num_unclear += not name
        if not name and not wanted:
            raise DatasetError(
                f"{path}: '{episode.sentence}' is the sentence of {' and of '.join(candidates)}, and the first "
                f"observation of episode {episode.index} does not tell them apart. Fix: --task {candidates[0]}"
            )
        if wanted in ("", name) or not name:
            groups.setdefault(name or wanted, []).append(episode)
    if not groups:
        raise DatasetError(f"{path} has no episode of {wanted}: its objects are where another task has them.")
    notes = _version_2_notes(meant, groups)
    if num_unclear:
        notes.append(f"{num_unclear} episodes have a sentence that another task shares: they are taken as {wanted}")
    return groups, notes


def _of_unknown_task(
    episodes: Sequence[EpisodeEntry], sentence: str, task: str
) -> tuple[dict[str, list[EpisodeEntry]], list[str]]:
    """Return the episodes of a sentence that is not of Meta-World, as ``task``."""
    chosen = [episode for episode in episodes if episode.sentence == sentence]
    if task == sentence:
        task = re.sub(r"[^\w-]+", "-", sentence)[:60].strip("-") or "imported"
    return {task: chosen}, [f"'{some([sentence])}' is not a task of Meta-World: its episodes are taken as {task}"]


def _check_tasks(path: Path, meant: Mapping[str, Sequence[str]], unknown: Sequence[str], wanted: str) -> None:
    """Raise :class:`DatasetError` if a sentence is unknown, or none is that of the wanted task."""
    shown = some(f"'{sentence}'" for sentence in (meant if wanted else unknown))
    if wanted and not any(wanted in tasks for tasks in meant.values()):
        hint = did_you_mean(wanted, [*meant, *TASKS])
        raise DatasetError(f"{path} has no episode of '{wanted}': its tasks are {shown}.{hint}")
    if unknown and not wanted:
        raise DatasetError(
            f"{path} has {len(unknown)} tasks that Meta-World does not have: {shown}. Fix: import one task with "
            "--task, by Meta-World's name or by its sentence."
        )


def _tasks_of(sentence: str) -> list[str]:
    """Return the tasks of Meta-World that a sentence or a name, of version 2 or 3, means."""
    version_2 = _VERSION_2.fullmatch(sentence)
    return find_tasks(f"{version_2[1]}-v3" if version_2 else sentence)


def _by_object(candidates: Sequence[str], first: np.ndarray | None) -> str:
    """Return the only task whose object may be reset to where the first observation has it, or ""."""
    fitting = []
    for name in candidates if first is not None else ():
        low, high = np.array(TASKS[name].low[:2]), np.array(TASKS[name].high[:2])
        position = first[_OBJECT_XY]  # type: ignore[index]
        if (low - _BOX_MARGIN_M <= position).all() and (position <= high + _BOX_MARGIN_M).all():
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else ""


def _version_2_notes(sentences: Iterable[str], groups: Mapping[str, object]) -> list[str]:
    renamed = []
    for sentence in sentences:
        for task in _tasks_of(sentence):
            if _VERSION_2.fullmatch(sentence) and task in groups:
                renamed.append(f"{sentence} is imported as {task}")
    if not renamed:
        return []
    return [
        f"{some(renamed)}: the observations have the same 39 numbers, but another version of Meta-World and of MuJoCo "
        "made them, so that they need not replay here"
    ]
