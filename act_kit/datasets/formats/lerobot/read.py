"""Reader of LeRobot datasets: one :class:`Content` per task, whose episodes are read one at a time.

Meta-World's observation is ``observation.environment_state`` in the public datasets (``lerobot/metaworld_mt50``), whose
``observation.state`` repeats the first 4 of its 39 numbers. In datasets that act_kit wrote, both together are it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.formats import content as checks
from act_kit.datasets.formats.content import FIX_SIDECAR, IMAGES, SIDECAR, Content, Keys, Layout, some
from act_kit.datasets.formats.lerobot.data import Data
from act_kit.datasets.formats.lerobot.metadata import EpisodeEntry, Feature, Metadata, read_metadata
from act_kit.datasets.formats.lerobot.names import ENVIRONMENT, EXACT_STEPS, IMAGE_PREFIX, STATE
from act_kit.datasets.formats.lerobot.parquet import ParquetFile, check_footers
from act_kit.datasets.formats.lerobot.tasks import group_by_task
from act_kit.errors import DatasetError
from act_kit.files import read_text
from act_kit.rollouts.episode import STEP_FIELDS, dtype_of
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, TASKS

_INDICES = frozenset({"timestamp", "frame_index", "episode_index", "index", "task_index"})
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")

Sources = Mapping[str, tuple[str, ...]]
"""Features of each array of a :data:`Layout`; the features of the states are put side by side."""


def read(path: Path, task: str, default: str, keys: Keys) -> list[Content]:
    """Open the dataset at ``path`` and check all of its steps but the images; episodes are read later.

    Args:
        path: Folder of the dataset.
        task: Task to import: a name of Meta-World, or the sentence of a task; "" for all.
        default: Name of the task of a dataset with a single one that Meta-World does not have.
        keys: Features to use as states and actions.

    Returns:
        Contents, one per task.

    Raises:
        DatasetError: The dataset is damaged, inconsistent, of another version, or does not contain ``task``.
    """
    check_footers(sorted(filter(Path.is_file, path.rglob("*.parquet"))))
    metadata = read_metadata(path)
    sidecar = path / SIDECAR
    known = checks.from_json(path, read_text(sidecar).encode() if sidecar.is_file() else None)
    sources = _choose_sources(metadata, Keys() if known else keys)
    _layout(metadata, sources, metadata.episodes)
    data = Data(metadata)
    if known:
        return [_exported(known, metadata, sources, data)]
    is_full = sum(metadata.features[name].shape[0] for name in sources["state"]) == STATE_DIM

    def first_state(episode: EpisodeEntry) -> np.ndarray | None:
        first: np.ndarray = data.numbers(episode, sources["state"], num_rows=1)[0]
        return first if is_full else None

    groups, notes = group_by_task(path, metadata.episodes, task, default, first_state)
    contents: list[Content] = []
    for name, episodes in groups.items():
        content = _imported(name, episodes, metadata, sources, data)
        contents.append(replace(content, notes=[*notes, *content.notes]))
    return contents


def _imported(task: str, episodes: Sequence[EpisodeEntry], metadata: Metadata, sources: Sources, data: Data) -> Content:
    """Return the content of the episodes of a task that act_kit did not export."""
    path, layout = metadata.path, _layout(metadata, sources, episodes)
    content = checks.foreign(task, len(episodes), layout, max(1, round(metadata.fps)))
    is_metaworld = task in TASKS and layout["action"][0][1:] == (ACTION_DIM,)
    has_observation = is_metaworld and layout["state"][0][1:] == (STATE_DIM,)
    first_states = np.empty((len(episodes), STATE_DIM))
    actions: list[np.ndarray] = []
    for i, episode in enumerate(episodes):
        actions.append(data.numbers(episode, sources["action"]))
        if has_observation:
            first_states[i] = data.numbers(episode, sources["state"], num_rows=1)[0]

    def read_array(index: int, name: str) -> np.ndarray:
        return _read(data, episodes[index], name, sources, layout)

    content = replace(
        content,
        fields=[name for name in STEP_FIELDS if name in sources],
        first_states=first_states if has_observation else None,
        recordings=checks.read_episodes(
            content, layout, lambda index: f"{path}, episode {episodes[index].index}", read_array
        ),
    )
    return checks.clip_actions(replace(content, notes=list(_notes(content, metadata, sources))), actions)


def _exported(known: Content, metadata: Metadata, sources: Sources, data: Data) -> Content:
    """Return the content of a dataset that act_kit exported: the steps are exact, the images those of the videos."""
    path, episodes = metadata.path, metadata.episodes
    exact = ParquetFile(path / EXACT_STEPS)
    ends = np.cumsum([episode.length for episode in episodes])
    if exact.num_rows != ends[-1]:
        raise DatasetError(f"{exact.path} has {exact.num_rows} steps, the episodes {ends[-1]}. Fix: {FIX_SIDECAR}")
    declared = _layout(metadata, sources, episodes)
    num_steps = declared["action"][0][0]
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name in (*known.fields, *filter(lambda name: name.startswith(IMAGES), declared)):
        layout[name] = declared.get(name) or (
            (num_steps, *exact.numbers(name, 0, 1).shape[1:]),
            np.dtype(dtype_of(name)),
        )
    checks.check_layout(str(exact.path), layout, layout)
    checks.check_content(path, known, layout, len(episodes))

    def read_array(index: int, name: str) -> np.ndarray:
        episode = episodes[index]
        if name == "action" or name.startswith(IMAGES):
            return _read(data, episode, name, sources, layout)
        values = exact.numbers(name, int(ends[index]) - episode.length, int(ends[index]))
        if name == "state" and not np.array_equal(values.astype(np.float32), data.numbers(episode, sources["state"])):
            raise DatasetError(
                f"{path}: the states of episode {index} differ from {EXACT_STEPS}: the dataset was edited. "
                f"Fix: {FIX_SIDECAR}"
            )
        return values

    recordings = checks.read_episodes(known, layout, lambda index: f"{path}, episode {index}", read_array)
    notes = ["the images are those of videos with lossy compression, not the rendered ones"] if known.cameras else []
    return replace(known, recordings=recordings, notes=notes)


def _read(data: Data, episode: EpisodeEntry, name: str, sources: Sources, layout: Layout) -> np.ndarray:
    """Read an array of an episode."""
    if name.startswith(IMAGES):
        _, height, width, channels = layout[name][0]
        return data.frames(episode, sources[name][0], (episode.length, height, width, channels))
    values = data.numbers(episode, sources[name])
    return values[:, 0] if len(layout[name][0]) == 1 else values


# -- features --------------------------------------------------------------------------------------------------------


def _choose_sources(metadata: Metadata, keys: Keys) -> dict[str, tuple[str, ...]]:
    """Return the features of each array: those of ``keys``, of Meta-World's whole observation, and all cameras."""
    features, path = metadata.features, metadata.path
    state, action = (keys.state,) if keys.state else _default_state(features), keys.action or "action"
    for name in (*state, action):
        if name not in features or len(features[name].shape) != 1:
            has = some(name for name, feature in features.items() if len(feature.shape) == 1 and name not in _INDICES)
            raise DatasetError(f"{path} lacks the vector {name}; it has {has}. Fix: --state KEY and --action KEY.")
    if state == (action,):
        raise DatasetError(f"{path}: --state and --action both name {action}. Fix: name two different features.")
    sources = {"state": state, "action": (action,)}
    for name in ("reward", "success"):
        key = f"next.{name}"
        if key in features and features[key].shape in ((), (1,)):
            sources[name] = (key,)
    for name, feature in features.items():
        if _frame_shape(feature) and not feature.is_depth:
            camera = name.removeprefix(IMAGE_PREFIX).removeprefix("observation.")
            if IMAGES + camera in sources:
                raise DatasetError(f"{path} has two cameras with the name {some([camera])}.")
            sources[IMAGES + camera] = (name,)
    return sources


def _default_state(features: Mapping[str, Feature]) -> tuple[str, ...]:
    """Return the features of Meta-World's observation, if they are there; otherwise those of the robot."""
    widths = {
        name: features[name].shape[0] for name in (STATE, ENVIRONMENT) if name in features and features[name].shape
    }
    for name, width in widths.items():
        if width == STATE_DIM:
            return (name,)
    if sum(widths.values()) == STATE_DIM:
        return (STATE, ENVIRONMENT)
    return (STATE,) if STATE in widths or not widths else (ENVIRONMENT,)


def _frame_shape(feature: Feature) -> tuple[int, int, int] | None:
    """Return (H, W, 3) for a camera; the shape of a feature may have its channels first."""
    if (
        feature.dtype not in ("image", "video")
        or len(feature.shape) != 3
        or 3 not in (feature.shape[0], feature.shape[2])
    ):
        return None
    height, width = feature.shape[:2] if feature.shape[2] == 3 else feature.shape[1:]
    return height, width, 3


def _layout(metadata: Metadata, sources: Sources, episodes: Sequence[EpisodeEntry]) -> Layout:
    """Return the checked layout of the longest of some episodes, as ``info.json`` declares it."""
    num_steps = max(episode.length for episode in episodes)
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name, keys in sources.items():
        first = metadata.features[keys[0]]
        frame = _frame_shape(first)
        if frame:
            layout[name] = ((num_steps, *frame), np.dtype(np.uint8))
            continue
        if not _NUMBERS.fullmatch(first.dtype):
            raise DatasetError(f"{metadata.path}: {keys[0]} is {some([first.dtype])}; numbers were expected.")
        width = sum(metadata.features[key].shape[0] for key in keys if metadata.features[key].shape)
        is_scalar = name in ("reward", "success")
        layout[name] = ((num_steps,) if is_scalar else (num_steps, width), np.dtype(first.dtype))
    checks.check_layout(str(metadata.path), layout, layout)
    return layout


# -- notes -------------------------------------------------------------------------------------------------------------


def _notes(content: Content, metadata: Metadata, sources: Sources) -> Iterator[str]:
    """Yield notes on assumptions, and on what is not imported."""
    features, state = metadata.features, sources["state"]
    others = [name for name in (STATE, ENVIRONMENT) if name in features and name not in state]
    if state != (STATE,) or others:
        widths = ", ".join(f"{name} of {features[name].shape[0]} numbers" for name in state)
        rest = f" ({others[0]}, of {features[others[0]].shape}: --state {others[0]})" if others else ""
        yield f"states are read from {widths}{rest}"
    if sources["action"] != ("action",):
        yield f"actions are read from {sources['action'][0]}"
    if features[sources["action"][0]].dtype == "float64":
        yield "actions are rounded to float32"
    if content.info.control_hz != metadata.fps:
        yield f"the control frequency is rounded from {metadata.fps:g} Hz"
    used = {key for keys in sources.values() for key in keys}
    ignored = [name for name in features if name not in used | _INDICES and name not in others]
    if ignored:
        yield f"ignored: {some(ignored)} ({len(ignored)} features: neither states, actions nor images of 3 channels)"
