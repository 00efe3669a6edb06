"""Which demonstrations a training learns from, and which it validates with.

Copies, also those moved by a hair, stay on one side: what is validated with has not been learnt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.reference import scale
from act_kit.errors import DatasetError
from act_kit.sim.initial_states import number_distinct
from act_kit.sim.tasks import get_task

VAL_FRACTION, SPLIT_SEED = 0.1, 0
"""What ``act train`` uses unless told otherwise."""

NEAR_COPY = 0.005
"""Initial states that differ by no more than this, in box widths, in every dimension, are near copies."""
_SAME_STATE = 1e-3
"""Where initial states were not recorded, episodes are near copies whose states differ by no more than this."""

Split = tuple[np.ndarray, np.ndarray]
"""Training and validation episodes, sorted int64."""


def split_episodes(num_episodes: int, val_fraction: float, seed: int, copy_of: np.ndarray | None = None) -> Split:
    """Split whole episodes into training and validation; at least one of each.

    Episodes with the same number in ``copy_of`` (N,) go together, unless they are more than half of all.

    Raises:
        DatasetError: There are fewer than two.
    """
    if num_episodes < 2:
        raise DatasetError(f"{num_episodes} demonstrations cannot be split into training and validation: collect more.")
    num_val = max(1, round(num_episodes * val_fraction))
    order = np.random.default_rng(seed).permutation(num_episodes)
    copy_of = np.arange(num_episodes) if copy_of is None else copy_of
    is_val = np.zeros(num_episodes, dtype=bool)
    for episode in order:
        copies = copy_of == copy_of[episode]
        if is_val.sum() < num_val and (is_val | copies).sum() <= max(num_val, num_episodes // 2):
            is_val |= copies
    if not is_val.any():
        is_val[order[:num_val]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def split_stores(stores: Sequence[EpisodeStore], val_fraction: float, seed: int) -> list[Split]:
    """Split the episodes of each dataset; copies stay on one side, also those in different datasets of one task.

    Raises:
        DatasetError: One of them has fewer than two.
    """
    numbers = near_copies(stores)
    is_learnt: dict[tuple[str, int], bool] = {}
    splits = []
    for store, copy_of in zip(stores, numbers, strict=True):
        train, val = split_episodes(store.num_episodes, val_fraction, seed, copy_of)
        sides = np.isin(np.arange(store.num_episodes), train)
        keys = [(store.info.task, int(number)) for number in copy_of]
        known = np.array([is_learnt.get(key, side) for key, side in zip(keys, sides.tolist(), strict=True)])
        if known.any() and not known.all():
            train, val = np.flatnonzero(known), np.flatnonzero(~known)
        is_learnt |= {key: bool(side) for key, side in zip(keys, np.isin(np.arange(len(keys)), train), strict=True)}
        splits.append((train, val))
    return splits


def near_copies(stores: Sequence[EpisodeStore]) -> list[np.ndarray]:
    """Number the episodes of datasets so that near copies have one number within a task; int64 (N,) each."""
    numbers: list[np.ndarray] = [np.empty(0)] * len(stores)
    for task in {store.info.task for store in stores}:
        chosen = [i for i, store in enumerate(stores) if store.info.task == task]
        if all(stores[i].has_init_states for i in chosen):
            rows, same = [scale(get_task(task), stores[i].rand_vecs) for i in chosen], NEAR_COPY
        else:
            rows, same = [_outlines(stores[i]) for i in chosen], _SAME_STATE
        bounds = np.cumsum([len(part) for part in rows])[:-1]
        for i, of_store in zip(chosen, np.split(number_distinct(np.concatenate(rows), same), bounds), strict=True):
            numbers[i] = of_store
    return numbers


def _outlines(store: EpisodeStore) -> np.ndarray:
    """Return the first, the mean and the last state of each episode: (N, 3 S)."""
    episodes = np.split(store.steps("state"), store.episode_ends[:-1])
    return np.stack([np.concatenate([states[0], states.mean(axis=0), states[-1]]) for states in episodes])
