"""Datasets made of others: merged, filtered, split. One function makes them all: episodes of some become a new one.

They keep where they come from (``DatasetInfo.parents``), and every attempt: one whose episode was left out counts as
not kept, so that the hole it leaves in the coverage stays visible.
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
from act_kit.files import DATASETS, new_folder, require_apart, require_space, write_json
from act_kit.rollouts.episode import Attempt, Recording

SEVERAL = "several"
"""What differs between the parents of a dataset."""


_MAX_NAME = 50
"""Letters of a folder that is called by a value: a file system takes 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some episodes of a dataset.

    Attributes:
        store: The dataset.
        episodes: Which of it, int64, ascending.
    """

    store: EpisodeStore
    episodes: np.ndarray

    @classmethod
    def all_of(cls, store: EpisodeStore) -> Part:
        """Take every episode."""
        return cls(store=store, episodes=np.arange(store.num_episodes))


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A dataset to make.

    Attributes:
        parts: The episodes it gets, in order.
        command: The command that makes it, without its ``--out``.
    """

    parts: Sequence[Part]
    command: str

    def __len__(self) -> int:
        return sum(len(part.episodes) for part in self.parts)


Derivations = Mapping[str, Derivation]
"""Datasets to make, each with its path in the folder of all; "" if there is only that one."""


# -- what to make --------------------------------------------------------------------------------------------------


def merge(stores: Sequence[EpisodeStore]) -> Derivations:
    """Put several datasets into one, or into one of each task.

    Raises:
        ConfigError: Two of them are the same.
        DatasetError: Those of one task hold different things.
    """
    seen: dict[str, Path] = {}
    for store in stores:
        key = store.fingerprint or str(store.path.resolve())
        if key in seen:
            raise ConfigError(f"{seen[key]} and {store.path} hold the same demonstrations. Name one of them only.")
        seen[key] = store.path
    merged = {}
    tasks = list(dict.fromkeys(store.info.task for store in stores))
    for task in tasks:
        of_task = [store for store in stores if store.info.task == task]
        for store in of_task[1:]:
            check_alike(of_task[0], store)
        command = shlex.join(["act", "data", "merge", *(str(store.path) for store in of_task)])
        merged[task if len(tasks) > 1 else ""] = Derivation(
            parts=[Part.all_of(store) for store in of_task], command=command
        )
    return merged


def filter_episodes(stores: Sequence[EpisodeStore], where: str, seed: int = 0) -> Derivations:
    """Choose the episodes for which ``where`` is true (:func:`~act_kit.datasets.episode_table.choose`), of each dataset.

    Raises:
        ConfigError: It is not an expression over the columns of each.
        DatasetError: It is true for no episode.
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
        where_from = ", ".join(str(store.path) for store in stores)
        raise DatasetError(f"No episode of {where_from} is left: '{where}' is true for none.")
    return derivations


def split_by(stores: Sequence[EpisodeStore], column: str) -> Derivations:
    """Split datasets into one for each value of a column, in a folder of its name.

    Raises:
        ConfigError: There is no such column, or it holds measurements.
    """
    values: dict[str, Any] = {}
    for store in stores:
        columns = columns_of(store)
        kinds = [name for name, of in columns.items() if not any(isinstance(value, float) for value in of)]
        if column not in kinds:
            raise ConfigError(f"--by takes one of {', '.join(kinds)}, not '{column}'; for others: act data filter.")
        for value in columns[column]:
            name = re.sub(r"[^\w.-]+", "-", str(value)).strip(".-")[:_MAX_NAME] or "none"
            if isinstance(value, bool):
                name = column if value else f"not-{column}"
            if values.setdefault(name, value) != value:
                raise ConfigError(f"'{values[name]}' and '{value}' would both be split into a folder {name}.")
    return _split(stores, {name: f"{column} == {value!r}" for name, value in sorted(values.items())})


def split_parts(stores: Sequence[EpisodeStore], shares: Sequence[float], seed: int = 0) -> Derivations:
    """Split datasets at random into ``part-0``, ``part-1``, … of the given relative sizes; none shares a start.

    Raises:
        ConfigError: There are fewer than two shares, or one is not positive.
        DatasetError: There are too few starts.
    """
    if len(shares) < 2 or not all(share > 0 for share in shares):
        raise ConfigError("--parts takes the sizes of at least two parts, such as 80,20.")
    bounds = [sum(shares[:i]) / sum(shares) for i in range(1, len(shares))]
    wheres = [f"random < {bounds[0]!r}"]
    wheres += [f"{low!r} <= random < {high!r}" for low, high in pairwise(bounds)]
    wheres.append(f"random >= {bounds[-1]!r}")
    return _split(stores, {f"part-{i}": where for i, where in enumerate(wheres)}, seed)


def _split(stores: Sequence[EpisodeStore], wheres: Mapping[str, str], seed: int = 0) -> Derivations:
    """Filter once for each part; of several datasets, a part is a folder of those that have episodes in it."""
    return {
        str(Path(name, inside)): derivation
        for name, where in wheres.items()
        for inside, derivation in filter_episodes(stores, where, seed).items()
    }


# -- making it -----------------------------------------------------------------------------------------------------


def write_derived(out: Path, derivations: Derivations, command: str, *, overwrite: bool) -> list[EpisodeStore]:
    """Write datasets to ``out``, or into it if they are several: all are there afterwards, or none.

    Raises:
        OutputError: ``out`` is not free, or overlaps a dataset that they are made of, or there is no space.
    """
    stores = {part.store.path: part.store for derivation in derivations.values() for part in derivation.parts}
    parents = list(stores.values())
    require_apart(out, stores)
    for derivation in derivations.values():
        for part in derivation.parts:
            check_alike(derivation.parts[0].store, part.store)
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
    write_dataset(
        path, describe(derivation), _recordings(derivation.parts),
        attempts=[attempt for part in derivation.parts for attempt in _attempts(part)],
        cameras=_drawn(derivation.parts[0].store),
    )  # fmt: skip


def describe(derivation: Derivation) -> DatasetInfo:
    """Return the attributes of a derived dataset: its parents', where they agree."""
    stores = [part.store for part in derivation.parts]
    infos = [store.info for store in stores]

    def common(values: Sequence[Any], otherwise: Any) -> Any:
        return values[0] if all(value == values[0] for value in values) else otherwise

    demonstrator = common([info.demonstrator for info in infos], SEVERAL)
    if demonstrator == SEVERAL:  # they may have left one
        sources = [part.store.sources[episode] for part in derivation.parts for episode in part.episodes]
        demonstrator = common(sources, SEVERAL)
    versions = {
        name: ", ".join(sorted({info.versions.get(name, "unknown") for info in infos})) for name in infos[0].versions
    }
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
                "path": str(store.path), "made_by": store.info.command,
                "fingerprint": store.fingerprint or store.compute_fingerprint(),
            }
            for store in stores
        ],
    )  # fmt: skip


def _recordings(parts: Sequence[Part]) -> Iterator[Recording]:
    """Yield the chosen episodes with their images, one at a time; their attempts numbered anew."""
    num_attempts = 0
    for part in parts:
        images = {camera: ImageStore(part.store, camera) for camera in _drawn(part.store)}
        kept = [number for number, attempt in enumerate(_attempts(part), num_attempts) if attempt.kept]
        chosen = set(part.episodes.tolist())
        recordings = (r for episode, r in enumerate(part.store.recordings()) if episode in chosen)
        for nth, (episode, recording) in enumerate(zip(part.episodes.tolist(), recordings, strict=True)):
            frames = {camera: image.checked_episode(episode) for camera, image in images.items()}
            yield replace(recording, images=frames, attempt=kept[nth] if kept else 0)
        num_attempts += len(_attempts(part))


def _attempts(part: Part) -> list[Attempt]:
    """Return a dataset's attempts; only those of the chosen episodes count as kept."""
    store, chosen = part.store, set(part.episodes.tolist())
    attempts = store.attempts()
    if store.has_init_states and not attempts:  # imported: only what came of them is known
        lengths = store.episode_lengths.tolist()
        attempts = [
            Attempt(init_state=s, num_steps=num, kept=True) for s, num in zip(store.init_states, lengths, strict=True)
        ]
    episodes = np.cumsum([attempt.kept for attempt in attempts]) - 1
    # Of a collection that was killed, attempts may be on record whose episodes are not.
    return [
        replace(attempt, kept=attempt.kept and episode in chosen)
        for attempt, episode in zip(attempts, episodes.tolist(), strict=True)
        if not attempt.kept or episode < store.num_episodes
    ]


def _drawn(store: EpisodeStore) -> dict[str, Drawn]:
    """Return how the frames of each camera were made.

    Raises:
        DatasetError: Some are not drawn yet.
    """
    images = [ImageStore(store, camera) for camera in ImageStore.cameras(store)]
    for image in images:
        if not image.is_complete:
            raise DatasetError(
                f"Only {image.num_episodes} of {store.num_episodes} episodes of {store.path} are drawn from "
                f"{image.camera}. First: {image.command}"
            )
    return {image.camera: Drawn(settings=image.settings, renderer=image.renderer) for image in images}


def check_alike(store: EpisodeStore, other: EpisodeStore) -> None:
    """Raise :class:`DatasetError` unless two datasets of a task hold the same things, so that they can be one."""
    facts: dict[str, Callable[[EpisodeStore], object]] = {
        "recorded fields": lambda store: store.widths,
        "recording of starts": lambda store: store.has_init_states,
        "horizon": lambda store: store.info.horizon,
        "actions a second": lambda store: store.info.control_hz,
        "versions": lambda store: {name: store.info.versions.get(name) for name in ("metaworld", "mujoco")},
        "images": lambda store: {
            camera: f"{drawn.settings} by {drawn.renderer} ({asdict(drawn.settings)})"
            for camera, drawn in _drawn(store).items()
        },
    }
    for what, fact in facts.items():
        if fact(store) != fact(other):
            raise DatasetError(
                f"{store.path} and {other.path} cannot be one dataset, their {what} differ: {fact(store)} and "
                f"{fact(other)}."
            )
