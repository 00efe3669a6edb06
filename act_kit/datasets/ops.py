"""Merging, filtering and splitting of datasets: each builds new datasets from selected episodes of existing ones.

A derived dataset records its inputs (``DatasetInfo.parents``) and all their attempts. An attempt whose episode was not
selected counts as not kept, so that the gap in the coverage stays visible.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.episode_table import choose, columns_of
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import DatasetInfo, EpisodeStore
from act_kit.datasets.write import Drawn, write_dataset
from act_kit.errors import ConfigError, DatasetError
from act_kit.files import DATASETS, require_space, write_json
from act_kit.outputs import new_folder, require_no_overlap
from act_kit.rollouts.episode import Attempt, Recording

SEVERAL = "several"
"""Value of an attribute that differs between the parents of a dataset."""

_MAX_NAME = 50
"""Maximum number of characters of a folder that is named after a value: file systems allow 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some episodes of a dataset.

    Attributes:
        store: The dataset.
        episodes: Indices of the selected episodes, int64, ascending.
    """

    store: EpisodeStore
    episodes: np.ndarray

    @classmethod
    def all_of(cls, store: EpisodeStore) -> Part:
        """Select every episode."""
        return cls(store=store, episodes=np.arange(store.num_episodes))


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A dataset to be derived.

    Attributes:
        parts: Its episodes, in order.
        command: Command that writes it, without ``--out``.
    """

    parts: Sequence[Part]
    command: str

    def __len__(self) -> int:
        return sum(len(part.episodes) for part in self.parts)


Derivations = Mapping[str, Derivation]
"""Datasets to be derived, by their path in the output folder; "" for a single dataset."""


# -- derivations -----------------------------------------------------------------------------------------------------


def merge(stores: Sequence[EpisodeStore]) -> Derivations:
    """Merge several datasets into one, or into one per task.

    Raises:
        ConfigError: Two of the datasets are the same.
        DatasetError: Datasets of one task cannot be merged (see :func:`check_mergeable`).
    """
    seen: dict[str, Path] = {}
    for store in stores:
        key = store.fingerprint or str(store.path.resolve())
        if key in seen:
            raise ConfigError(f"{seen[key]} and {store.path} hold the same demonstrations. Fix: name only one of them.")
        seen[key] = store.path
    merged = {}
    tasks = list(dict.fromkeys(store.info.task for store in stores))
    for task in tasks:
        task_stores = [store for store in stores if store.info.task == task]
        for store in task_stores[1:]:
            check_mergeable(task_stores[0], store)
        command = shlex.join(["act", "data", "merge", *(str(store.path) for store in task_stores)])
        parts = [Part.all_of(store) for store in task_stores]
        merged[task if len(tasks) > 1 else ""] = Derivation(parts=parts, command=command)
    return merged


def filter_episodes(stores: Sequence[EpisodeStore], where: str, seed: int = 0) -> Derivations:
    """Select the episodes of each dataset for which ``where`` is true.

    See :func:`~act_kit.datasets.episode_table.choose`.

    Raises:
        ConfigError: ``where`` is not an expression over the columns of every dataset.
        DatasetError: ``where`` is true for no episode.
    """
    derivations = {}
    for store in stores:
        chosen = choose(columns_of(store, seed), where)
        command = ["act", "data", "filter", str(store.path), "--where", where, *(["--seed", str(seed)] if seed else [])]
        if len(chosen):
            part = Part(store=store, episodes=chosen)
            derivations[store.path.name if len(stores) > 1 else ""] = Derivation(
                parts=[part], command=shlex.join(command)
            )
    if not derivations:
        paths = ", ".join(str(store.path) for store in stores)
        raise DatasetError(f"No episode of {paths} is selected: '{where}' is true for none.")
    return derivations


def split_by(stores: Sequence[EpisodeStore], column: str) -> Derivations:
    """Split datasets into one per value of a column, each in a folder named after the value.

    Raises:
        ConfigError: There is no such column, or its values are continuous.
    """
    values: dict[str, Any] = {}
    for store in stores:
        columns = columns_of(store)
        discrete: list[str] = []
        for name, values_of_column in columns.items():
            if not any(isinstance(value, float) for value in values_of_column):
                discrete.append(name)
        if column not in discrete:
            raise ConfigError(
                f"--by takes one of {', '.join(discrete)}, not '{column}'. Fix: for other columns, use act data filter."
            )
        for value in columns[column]:
            name = re.sub(r"[^\w.-]+", "-", str(value)).strip(".-")[:_MAX_NAME] or "none"
            if isinstance(value, bool):
                name = column if value else f"not-{column}"
            if values.setdefault(name, value) != value:
                raise ConfigError(f"'{values[name]}' and '{value}' would both be written to the folder {name}.")
    return _split(stores, {name: f"{column} == {value!r}" for name, value in sorted(values.items())})


def split_parts(stores: Sequence[EpisodeStore], shares: Sequence[float], seed: int = 0) -> Derivations:
    """Split datasets at random into ``part-0``, ``part-1``, … of the given relative sizes.

    No two parts share an initial state.

    Raises:
        ConfigError: There are fewer than two shares, or a share is not positive.
        DatasetError: There are too few distinct initial states.
    """
    if len(shares) < 2 or not all(share > 0 for share in shares):
        raise ConfigError("--parts takes the positive sizes of at least two parts, such as 80,20.")
    bounds = [sum(shares[:i]) / sum(shares) for i in range(1, len(shares))]
    wheres = [f"random < {bounds[0]!r}"]
    wheres += [f"{low!r} <= random < {high!r}" for low, high in pairwise(bounds)]
    wheres.append(f"random >= {bounds[-1]!r}")
    return _split(stores, {f"part-{i}": where for i, where in enumerate(wheres)}, seed)


def _split(stores: Sequence[EpisodeStore], wheres: Mapping[str, str], seed: int = 0) -> Derivations:
    """Filter once per part; for several datasets, a part is a folder of the datasets that have episodes in it."""
    derivations: dict[str, Derivation] = {}
    for name, where in wheres.items():
        for folder, derivation in filter_episodes(stores, where, seed).items():
            derivations[str(Path(name, folder))] = derivation
    return derivations


# -- writing ---------------------------------------------------------------------------------------------------------


def write_derived(out: Path, derivations: Derivations, command: str, *, overwrite: bool) -> list[EpisodeStore]:
    """Write one dataset to ``out``, or several into the folder ``out``, atomically.

    Raises:
        OutputError: ``out`` is not free or overlaps an input dataset, or there is not enough disk space.
    """
    stores: dict[Path, EpisodeStore] = {}
    for derivation in derivations.values():
        stores.update({part.store.path: part.store for part in derivation.parts})
    parents = list(stores.values())
    require_no_overlap(out, stores)
    for derivation in derivations.values():
        for part in derivation.parts:
            check_mergeable(derivation.parts[0].store, part.store)
    with new_folder(out, overwrite=overwrite) as fresh:
        for parent in parents:
            parent.check_content()
        require_space(out, sum(parent.size_bytes() for parent in parents), "The new datasets")
        for name, derivation in derivations.items():
            _write(fresh / name, derivation)
        if "" not in derivations:
            write_json(fresh / DATASETS, {"command": command, "datasets": list(derivations)})
    return [EpisodeStore.open(out / name) for name in derivations]


def _write(path: Path, derivation: Derivation) -> None:
    path.mkdir(parents=True, exist_ok=True)
    attempts: list[Attempt] = []
    for part in derivation.parts:
        attempts += _attempts(part)
    cameras = _rendered_cameras(derivation.parts[0].store)
    write_dataset(path, describe(derivation), _recordings(derivation.parts), attempts=attempts, cameras=cameras)


def describe(derivation: Derivation) -> DatasetInfo:
    """Return the metadata of a derived dataset: the values on which its parents agree."""
    stores = [part.store for part in derivation.parts]
    infos = [store.info for store in stores]

    def common(values: Sequence[Any], otherwise: Any) -> Any:
        return values[0] if all(value == values[0] for value in values) else otherwise

    demonstrator = common([info.demonstrator for info in infos], SEVERAL)
    if demonstrator == SEVERAL:  # the selected episodes may still have a single source
        sources: list[str] = []
        for part in derivation.parts:
            store_sources = part.store.sources
            sources += [store_sources[episode] for episode in part.episodes]
        demonstrator = common(sources, SEVERAL)
    versions: dict[str, str] = {}
    for name in infos[0].versions:
        found = {info.versions.get(name, "unknown") for info in infos}
        versions[name] = ", ".join(sorted(found))
    return DatasetInfo(
        task=infos[0].task,
        num_wanted=len(derivation),
        seed=None,
        init_distribution="derived",
        demonstrator=demonstrator,
        noise=max(info.noise for info in infos),
        steps_after_success=max(info.steps_after_success for info in infos),
        command=derivation.command,
        versions=versions,
        git_commit=common([info.git_commit for info in infos], None),
        horizon=infos[0].horizon,
        control_hz=infos[0].control_hz,
        parents=[
            {
                "path": str(store.path),
                "made_by": store.info.command,
                "fingerprint": store.fingerprint or store.compute_fingerprint(),
            }
            for store in stores
        ],
    )


def _recordings(parts: Sequence[Part]) -> Iterator[Recording]:
    """Yield the selected episodes with their images, one at a time, with renumbered attempts."""
    num_attempts = 0
    for part in parts:
        images = {camera: ImageStore(part.store, camera) for camera in _rendered_cameras(part.store)}
        kept = [number for number, attempt in enumerate(_attempts(part), num_attempts) if attempt.kept]
        chosen = set(part.episodes.tolist())
        recordings = (r for episode, r in enumerate(part.store.recordings()) if episode in chosen)
        for i, (episode, recording) in enumerate(zip(part.episodes.tolist(), recordings, strict=True)):
            frames = {camera: image.checked_episode(episode) for camera, image in images.items()}
            yield replace(recording, images=frames, attempt=kept[i] if kept else 0)
        num_attempts += len(_attempts(part))


def _attempts(part: Part) -> list[Attempt]:
    """Return the attempts of a dataset; only those of the selected episodes count as kept."""
    store, chosen = part.store, set(part.episodes.tolist())
    attempts = store.attempts()
    if store.has_init_states and not attempts:  # imported: only successful attempts are known
        lengths = store.episode_lengths.tolist()
        attempts = [
            Attempt(init_state=init_state, num_steps=num_steps, kept=True)
            for init_state, num_steps in zip(store.init_states, lengths, strict=True)
        ]
    episodes = np.cumsum([attempt.kept for attempt in attempts]) - 1
    # After a killed collection, attempts may be recorded whose episodes are not; they are dropped.
    return [
        replace(attempt, kept=attempt.kept and episode in chosen)
        for attempt, episode in zip(attempts, episodes.tolist(), strict=True)
        if not attempt.kept or episode < store.num_episodes
    ]


def _rendered_cameras(store: EpisodeStore) -> dict[str, Drawn]:
    """Return the render settings and the renderer of each camera.

    Raises:
        DatasetError: The frames of a camera are incomplete.
    """
    images = [ImageStore(store, camera) for camera in ImageStore.cameras(store)]
    for image in images:
        if not image.is_complete:
            raise DatasetError(
                f"Only {image.num_episodes} of {store.num_episodes} episodes of {store.path} are rendered from "
                f"{image.camera}. Fix: {image.command}"
            )
    return {image.camera: Drawn(settings=image.settings, renderer=image.renderer) for image in images}


def check_mergeable(store: EpisodeStore, other: EpisodeStore) -> None:
    """Raise :class:`DatasetError` unless two datasets of a task can be merged."""
    facts: dict[str, Callable[[EpisodeStore], object]] = {
        "recorded fields": lambda store: store.widths,
        "recorded initial states": lambda store: store.has_init_states,
        "horizon": lambda store: store.info.horizon,
        "control frequencies": lambda store: store.info.control_hz,
        "versions": lambda store: {name: store.info.versions.get(name) for name in ("metaworld", "mujoco")},
        "images": lambda store: {
            camera: f"{rendered.settings} by {rendered.renderer} ({asdict(rendered.settings)})"
            for camera, rendered in _rendered_cameras(store).items()
        },
    }
    for name, fact in facts.items():
        if fact(store) != fact(other):
            raise DatasetError(
                f"{store.path} and {other.path} cannot be merged, their {name} differ: {fact(store)} and {fact(other)}."
            )
