"""Verification by replay: recorded actions lead to the recorded states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from act_kit.collection.verify import replay
from act_kit.datasets.store import EpisodeStore
from act_kit.parallel import LocalExecutor
from tests.conftest import SERIAL, act, make_dataset


def test_recorded_episodes_replay_bit_exactly(reach_store: EpisodeStore) -> None:
    with LocalExecutor(2) as executor:
        results = replay(reach_store, executor=executor)
    assert [result.index for result in results] == list(range(10))
    assert all(result.first_difference is None for result in results)


def test_noisy_episodes_replay_with_their_executed_actions(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=2, noise=0.3)
    assert all(result.first_difference is None for result in replay(store, executor=SERIAL))


def test_rewards_are_recorded_on_request_and_replayed(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "without", n=2).episodes()[0].reward is None
    store = make_dataset(tmp_path / "with", n=2, rewards=True)
    reward = store.episodes()[1].reward
    assert reward is not None
    assert reward.max() == 10
    assert "rewards=true" in store.info.command
    assert all(result.first_difference is None for result in replay(store, executor=SERIAL))


def test_one_changed_bit_counts_as_rounding_and_more_as_a_difference(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", n=2)
    state = zarr.open_group(tmp_path / "data", mode="r+")["data/state"]
    assert isinstance(state, zarr.Array)
    value = np.asarray(state[20, 5])
    state[20, 5] = np.nextafter(value, 1)
    first, second = replay(EpisodeStore.open(tmp_path / "data"), executor=SERIAL)
    assert (first.first_difference, first.rounded) == (None, {"state": np.nextafter(value, 1) - value})
    assert (second.first_difference, second.rounded) == (None, {})
    output = act("data", "verify", tmp_path / "data", "--workers", 1, check=0).stdout
    assert "1 of 2 episodes replayed bit-exactly.\nThe others differ by rounding, at most state by " in output
    state[20, 5] = value + 1e-9
    first, second = replay(EpisodeStore.open(tmp_path / "data"), executor=SERIAL)
    assert (first.first_difference, first.field) == (20, "state")
    assert second.rounded == {}
