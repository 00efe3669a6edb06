"""Replay: the cheapest proof that data and simulator mean the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from act_kit.collection.replay import replay
from act_kit.datasets.store import EpisodeStore

from tests.conftest import make_dataset


def test_recorded_episodes_replay_to_the_bit(reach_store: EpisodeStore) -> None:
    assert all(result.first_difference is None for result in replay(reach_store, num_workers=2))


def test_noisy_episodes_replay_by_what_was_executed(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=2, noise=0.3)
    assert all(result.first_difference is None for result in replay(store, num_workers=1))


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", n=2)
    state = zarr.open_group(tmp_path / "data", mode="r+")["data/state"]
    assert isinstance(state, zarr.Array)
    value = np.asarray(state[20, 5])
    state[20, 5] = np.nextafter(value, 1)
    first, second = replay(EpisodeStore.open(tmp_path / "data"), num_workers=1)
    assert (first.first_difference, first.field) == (20, "state")
    assert second.first_difference is None
