"""Merging, filtering and splitting of datasets: each builds new datasets from selected episodes of existing ones.

A derived dataset records its inputs (``DatasetInfo.parents``) and all their attempts. An attempt whose episode was not
selected counts as not kept, so that the gap in the coverage stays visible.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.episode_table import episode_table, select_episodes
from act_kit.datasets.images import iter_with_images, rendered_frames
from act_kit.datasets.schema import DatasetInfo
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.errors import ConfigError, DatasetError
from act_kit.files import DATASETS, require_space, write_json
from act_kit.outputs import new_folder, require_no_overlap
from act_kit.rollouts.episode import AttemptRecord, Episode

SEVERAL = "several"
"""Value of an attribute that differs between the parents of a dataset."""

_MAX_NAME = 50
"""Maximum number of characters of a folder that is named after a value: file systems allow 255 bytes."""


class _NothingSelectedError(DatasetError):
    """An expression is true for no episode."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some episodes of a dataset.

    Attributes:
        store: The dataset.
        episodes: Indices of the selected episodes, int64, ascending.
    """

    store: EpisodeStore
    episodes: np.ndarray


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
    parts: dict[str, list[Part]] = {}
    for store in stores:
        key = store.fingerprint or str(store.path.resolve())
        if key in seen:
            raise ConfigError(f"{seen[key]} and {store.path} hold the same demonstrations. Fix: name only one of them.")
        seen[key] = store.path
        parts.setdefault(store.info.task, []).append(Part(store=store, episodes=np.arange(len(store))))
    merged = {}
    for task, parts_of_task in parts.items():
        check_mergeable(parts_of_task)
        command = shlex.join(["act", "data", "merge", *(str(part.store.path) for part in parts_of_task)])
        merged[task if len(parts) > 1 else ""] = Derivation(parts=parts_of_task, command=command)
    return merged


def filter_episodes(stores: Sequence[EpisodeStore], where: str, seed: int = 0) -> Derivations:
    """Select the episodes of each dataset for which ``where`` is true.

    See :func:`~act_kit.datasets.episode_table.select_episodes`.

    Raises:
        ConfigError: ``where`` is not an expression over the columns of every dataset.
        DatasetError: ``where`` is true for no episode.
    """
    derivations: dict[str, Derivation] = {}
    paths: list[str] = []
    for store in stores:
        paths.append(str(store.path))
        part = Part(store=store, episodes=select_episodes(episode_table(store, seed), where))
        command = ["act", "data", "filter", str(store.path), "--where", where, *(["--seed", str(seed)] if seed else [])]
        if len(part.episodes):
            name = store.path.name if len(stores) > 1 else ""
            derivations[name] = Derivation(parts=[part], command=shlex.join(command))
    if not derivations:
        raise _NothingSelectedError(f"No episode of {', '.join(paths)} is selected: '{where}' is true for none.")
    return derivations


def split_by(stores: Sequence[EpisodeStore], column: str) -> Derivations:
    """Split datasets into one per value of a column, each in a folder named after the value.

    Raises:
        ConfigError: There is no such column, or its values are continuous.
        DatasetError: There is no episode.
    """
    values: dict[str, Any] = {}
    for store in stores:
        discrete = episode_table(store)
        for name, cells in list(discrete.items()):
            if float in map(type, cells):
                del discrete[name]
        if column not in discrete:
            raise ConfigError(f"--by takes one of {', '.join(discrete)}, not '{column}'. Fix: use act data filter.")
        for value in discrete[column]:
            name = re.sub(r"[^\w.-]+", "-", str(value)).strip(".-")[:_MAX_NAME] or "none"
            if isinstance(value, bool):
                name = column if value else f"not-{column}"
            if values.setdefault(name, value) != value:
                raise ConfigError(f"'{values[name]}' and '{value}' would both be written to the folder {name}.")
    if not values:
        raise DatasetError(f"{', '.join(str(store.path) for store in stores)} contains no demonstrations to split.")
    return _split(stores, {name: f"{column} == {value!r}" for name, value in sorted(values.items())})


def split_parts(stores: Sequence[EpisodeStore], shares: Sequence[float], seed: int = 0) -> Derivations:
    """Split datasets at random into ``part-0``, ``part-1``, … of the given relative sizes.

    No two parts share an initial state.

    Raises:
        ConfigError: There are fewer than two shares, or a share is not positive and finite.
        DatasetError: There are too few distinct initial states.
    """
    if len(shares) < 2 or min(shares) <= 0 or not math.isfinite(sum(shares)):
        raise ConfigError("--parts takes the positive sizes of at least two parts, such as 80,20.")
    bounds = [sum(shares[:i]) / sum(shares) for i in range(1, len(shares))]
    wheres = {"part-0": f"random < {bounds[0]!r}"}
    for i, (low, high) in enumerate(pairwise(bounds), start=1):
        wheres[f"part-{i}"] = f"{low!r} <= random < {high!r}"
    wheres[f"part-{len(bounds)}"] = f"random >= {bounds[-1]!r}"
    try:
        return _split(stores, wheres, seed)
    except _NothingSelectedError as error:
        parts = ",".join(map("{:g}".format, shares))
        raise DatasetError(
            f"{', '.join(str(store.path) for store in stores)} has too few distinct initial states for the parts "
            f"{parts}: one of them would be empty. Fix: fewer parts, or more equal ones."
        ) from error


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
        check_mergeable(derivation.parts)
        for part in derivation.parts:
            stores[part.store.path] = part.store
    require_no_overlap(out, stores)
    with new_folder(out, overwrite=overwrite) as fresh:
        num_bytes = 0
        for store in stores.values():
            store.check_content()
            num_bytes += store.size_bytes()
        require_space(out, num_bytes, "The new datasets")
        for name, derivation in derivations.items():
            _write(fresh / name, derivation)
        if "" not in derivations:
            write_json(fresh / DATASETS, {"command": command, "datasets": list(derivations)})
    return [EpisodeStore.open(out / name) for name in derivations]


def _write(path: Path, derivation: Derivation) -> None:
    path.mkdir(parents=True, exist_ok=True)
    attempts = list(chain.from_iterable(map(_attempts, derivation.parts)))
    cameras = rendered_frames(derivation.parts[0].store)
    write_dataset(path, describe(derivation), _recordings(derivation.parts), attempts=attempts, cameras=cameras)


def describe(derivation: Derivation) -> DatasetInfo:
    """Return the metadata of a derived dataset: the values on which its parents agree."""
    infos: list[DatasetInfo] = []
    parents: list[dict[str, Any]] = []
    sources = set[str]()
    for part in derivation.parts:
        info, fingerprint = part.store.info, part.store.content_fingerprint
        infos.append(info)
        parents.append({"path": str(part.store.path), "made_by": info.command, "fingerprint": fingerprint})
        sources.update(np.array(part.store.sources)[part.episodes].tolist())
    demonstrator = _common(infos, "demonstrator", SEVERAL)
    if demonstrator == SEVERAL and len(sources) == 1:  # the selected episodes have a single source
        demonstrator = sources.pop()
    versions: dict[str, str] = {}
    for name in infos[0].versions:
        found = {info.versions.get(name, "unknown") for info in infos}
        versions[name] = ", ".join(sorted(found))
    return replace(
        infos[0],
        num_wanted=len(derivation),
        seed=None,
        init_distribution="derived",
        demonstrator=demonstrator,
        noise=max(_values(infos, "noise")),
        steps_after_success=max(_values(infos, "steps_after_success")),
        command=derivation.command,
        versions=versions,
        git_commit=_common(infos, "git_commit", None),
        parents=parents,
    )


def _values(infos: Sequence[DatasetInfo], name: str) -> set[Any]:
    return {getattr(info, name) for info in infos}


def _common(infos: Sequence[DatasetInfo], name: str, otherwise: Any) -> Any:
    values = _values(infos, name)
    return values.pop() if len(values) == 1 else otherwise


def _recordings(parts: Sequence[Part]) -> Iterator[Episode]:
    """Yield the selected episodes with their images, one at a time, with renumbered attempts."""
    num_attempts = 0
    for part in parts:
        attempts = _attempts(part)
        kept = num_attempts + np.flatnonzero([attempt.kept for attempt in attempts])
        for i, recording in enumerate(iter_with_images(part.store, part.episodes)):
            yield replace(recording, attempt=int(kept[i]) if len(kept) else 0)
        num_attempts += len(attempts)


def _attempts(part: Part) -> list[AttemptRecord]:
    """Return the attempts of a dataset; only those of the selected episodes count as kept."""
    store, chosen = part.store, set(part.episodes.tolist())
    attempts = store.attempts()
    if store.has_init_states and not attempts:  # imported: only successful attempts are known
        for init_state, num_steps in zip(store.init_states, store.episode_lengths.tolist(), strict=True):
            attempts.append(AttemptRecord(init_state=init_state, num_steps=num_steps, kept=True))
    selected, episode = [], -1
    for attempt in attempts:
        episode += attempt.kept
        # After a killed collection, attempts may be recorded whose episodes are not; they are dropped.
        if not attempt.kept or episode < store.num_episodes:
            selected.append(replace(attempt, kept=attempt.kept and episode in chosen))
    return selected


def check_mergeable(parts: Sequence[Part]) -> None:
    """Raise :class:`DatasetError` unless episodes of datasets of a task can be merged."""
    expected = _facts(parts[0].store)
    for part in parts[1:]:
        for name, fact in _facts(part.store).items():
            if fact != expected[name]:
                paths = f"{parts[0].store.path} and {part.store.path}"
                raise DatasetError(f"{paths} cannot be merged, their {name} differ: {expected[name]} and {fact}.")


def _facts(store: EpisodeStore) -> dict[str, object]:
    """Return by name what must be equal in datasets to be merged."""
    return {
        "recorded fields": store.widths,
        "recorded initial states": store.has_init_states,
        "horizon": store.info.horizon,
        "control frequencies": store.info.control_hz,
        "versions": {name: store.info.versions.get(name) for name in ("metaworld", "mujoco")},
        "images": rendered_frames(store),
    }
