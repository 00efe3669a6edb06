"""Windows against the obvious way to cut them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.windows import Windows, load_windows, split_episodes
from act_kit.errors import DatasetError


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), chunk_size=st.integers(1, 9))
def test_windows_are_the_actions_that_follow_and_never_another_episodes(lengths: list[int], chunk_size: int) -> None:
    ends = np.cumsum(lengths)
    actions = torch.arange(ends[-1]).float()[:, None].repeat(1, 4)
    last = torch.from_numpy(np.repeat(ends - 1, lengths))
    windows = Windows(states_TS=actions.clone(), actions_TA=actions, last_T=last, chunk_size=chunk_size)
    states, chunks, is_pad = windows.gather(torch.arange(len(windows)))
    for step in range(len(windows)):
        end = ends[np.searchsorted(ends, step, side="right")]
        assert states[step, 0] == step
        for slot in range(chunk_size):
            assert bool(is_pad[step, slot]) == (step + slot >= end)
            assert chunks[step, slot, 0] == min(step + slot, end - 1)


def test_loaded_episodes_are_those_asked_for(reach_store: EpisodeStore) -> None:
    windows = load_windows(reach_store, np.array([1, 4]), 8, torch.device("cpu"))
    episodes = reach_store.episodes()
    both = np.concatenate([episodes[1].state, episodes[4].state]).astype(np.float32)
    assert np.array_equal(windows.states_TS.numpy(), both)
    _, chunks, is_pad = windows.gather(torch.tensor([len(episodes[1]) - 2]))
    assert is_pad.tolist() == [[False, False, *[True] * 6]]
    assert np.array_equal(chunks[0, :2].numpy(), episodes[1].action[-2:])


def test_the_split_is_by_episode() -> None:
    train, val = split_episodes(50, 0.1, seed=0)
    assert len(val) == 5
    assert sorted([*train, *val]) == list(range(50))
    assert len(split_episodes(2, 0.1, seed=0)[1]) == 1
    with pytest.raises(DatasetError, match="collect more"):
        split_episodes(1, 0.1, seed=0)
