"""Split of demonstrations into training and validation.

Copies and near copies stay in the same part, so that no validation episode has been trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.sim.initial_states import number_distinct, scale
from act_kit.sim.tasks import get_task

VAL_FRACTION, SPLIT_SEED = 0.1, 0
"""Defaults of ``act train``."""

NEAR_COPY = 0.005
"""Initial states that differ by at most this fraction of the reset box in every dimension are near copies."""
_NEAR_STATE = 1e-3
"""Without recorded initial states, episodes whose states differ by at most this are near copies."""

Split = tuple[np.ndarray, np.ndarray]
"""Indices of the training and the validation episodes, sorted int64."""


def split_episodes(num_episodes: int, val_fraction: float, seed: int, copy_of: np.ndarray | None = None) -> Split:
    """Split whole episodes into training and validation; at least one of each.

    Episodes with the same number in ``copy_of`` (N,) go to the same part, unless they are more than half of all.

    Raises:
        DatasetError: There are fewer than two episodes.
    """
    if num_episodes < 2:
        raise DatasetError(f"{num_episodes} episodes, but training and validation need two. Fix: collect more.")
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
    """Split the episodes of each dataset; copies stay in one part, also across datasets of one task.

    Raises:
        DatasetError: A dataset has fewer than two episodes.
    """
    is_train_of: dict[tuple[str, int], bool] = {}
    splits = []
    for store, copy_of in zip(stores, near_copies(stores), strict=True):
        train, val = split_episodes(store.num_episodes, val_fraction, seed, copy_of)
        is_train = np.isin(np.arange(store.num_episodes), train)
        # A copy of an episode of an earlier dataset goes to the part of that episode.
        keys = [(store.info.task, number) for number in copy_of.tolist()]
        adjusted = np.array(list(map(is_train_of.get, keys, is_train.tolist())))
        if adjusted.any() and not adjusted.all():
            train, val, is_train = np.flatnonzero(adjusted), np.flatnonzero(~adjusted), adjusted
        is_train_of.update(zip(keys, is_train.tolist(), strict=True))
        splits.append((train, val))
    return splits


def near_copies(stores: Sequence[EpisodeStore]) -> list[np.ndarray]:
    """Number the episodes of each dataset, int64 (N,), so that near copies within a task have the same number."""
    stores_of: dict[str, list[EpisodeStore]] = {}
    for store in stores:
        stores_of.setdefault(store.info.task, []).append(store)
    numbers: dict[EpisodeStore, np.ndarray] = {}
    for task, same_task in stores_of.items():
        if all(store.has_init_states for store in same_task):
            rows, tolerance = [scale(get_task(task), store.rand_vecs) for store in same_task], NEAR_COPY
        else:
            rows, tolerance = list(map(_state_summaries, same_task)), _NEAR_STATE
        parts = np.split(number_distinct(np.concatenate(rows), tolerance), np.cumsum(list(map(len, rows)))[:-1])
        numbers |= zip(same_task, parts, strict=True)
    return list(map(numbers.__getitem__, stores))


def _state_summaries(store: EpisodeStore) -> np.ndarray:
    """Return the first, the mean and the last state of each episode, (N, 3 S)."""
    episodes = store.steps_by_episode("state")
    return np.stack([np.concatenate([states[0], states.mean(axis=0), states[-1]]) for states in episodes])
