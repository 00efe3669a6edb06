"""Chunk sampling, compared with a straightforward implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act_kit.datasets.chunk_dataset import ChunkDataset, ChunkSampler, load_chunk_sampler
from act_kit.datasets.split import split_episodes
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), chunk_size=st.integers(1, 9))
def test_chunks_are_the_following_actions_of_the_same_episode(lengths: list[int], chunk_size: int) -> None:
    ends = np.cumsum(lengths)
    actions = torch.arange(ends[-1]).float()[:, None].repeat(1, 4)
    steps = torch.arange(ends[-1])
    sampler = ChunkSampler(
        states_TS=actions.clone(),
        actions_TA=actions,
        first_T=torch.from_numpy(np.repeat(ends - lengths, lengths)),
        last_T=torch.from_numpy(np.repeat(ends - 1, lengths)),
        tasks_T=torch.zeros_like(steps),
        images_TCHW3=None,
        chunk_size=chunk_size,
        train_steps=steps,
        cumulative_T=(steps + 1).double(),
        val_steps=steps,
    )
    batch = sampler.gather(steps)
    first_T = sampler.first_states(steps)[:, 0]
    states, chunks, is_pad = batch.states_BS, batch.actions_BKA, batch.is_pad_BK
    for step in range(len(steps)):
        end = ends[np.searchsorted(ends, step, side="right")]
        assert states[step, 0] == step
        assert first_T[step] == [0, *ends][np.searchsorted(ends, step, side="right")]
        for slot in range(chunk_size):
            assert bool(is_pad[step, slot]) == (step + slot >= end)
            assert chunks[step, slot, 0] == min(step + slot, end - 1)


def load(*stores: EpisodeStore, seed: int = 0, max_share_after_success: float = 1.0) -> ChunkSampler:
    return load_chunk_sampler(
        stores,
        chunk_size=8,
        val_fraction=0.2,
        max_share_after_success=max_share_after_success,
        seed=seed,
        device=torch.device("cpu"),
    )


def test_every_episode_is_in_training_or_in_validation(reach_store: EpisodeStore) -> None:
    sampler, episodes = load(reach_store), reach_store.episodes()
    begins = reach_store.episode_ends - reach_store.episode_lengths
    train, val = split_episodes(10, 0.2, seed=0)
    for steps, chosen in ((sampler.train_steps, train), (sampler.val_steps, val)):
        states = np.concatenate([episodes[i].state for i in chosen]).astype(np.float32)
        assert np.array_equal(sampler.states_TS[steps].numpy(), states)
    last = torch.tensor([begins[3] + len(episodes[3]) - 2])
    batch = sampler.gather(last)
    assert batch.is_pad_BK.tolist() == [[False, False, *[True] * 6]]
    assert np.array_equal(batch.actions_BKA[0, :2].numpy(), episodes[3].action[-2:])


def test_datasets_are_concatenated_and_all_tasks_are_sampled_equally_often(
    reach_store: EpisodeStore, push_store: EpisodeStore, one_init_state_store: EpisodeStore
) -> None:
    """Two of the datasets are of the same task and share its part of the batches."""
    sampler = load(reach_store, push_store, one_init_state_store)
    num_reach, num_push = reach_store.num_steps, push_store.num_steps
    assert sampler.tasks_T.tolist() == [0] * num_reach + [1] * num_push + [0] * one_init_state_store.num_steps
    assert int(sampler.last_T[num_reach]) == num_reach + push_store.episode_lengths[0] - 1
    push = torch.arange(num_reach, num_reach + 1)
    assert np.array_equal(sampler.gather(push).actions_BKA[0].numpy(), push_store.steps("action")[:8])
    torch.manual_seed(0)
    sampled = sampler.sample(20_000)
    assert set(sampled.tolist()) == set(sampler.train_steps.tolist())
    assert sampler.gather(sampled).tasks_B.float().mean().item() == pytest.approx(0.5, abs=0.02)
    within = torch.bincount(sampled[sampler.tasks_T[sampled] == 1])[num_reach : num_reach + num_push]
    num_push = int((sampler.tasks_T[sampler.train_steps] == 1).sum())
    assert within[within > 0].float().mean().item() == pytest.approx(10_000 / num_push, rel=0.05)


def test_steps_after_the_success_are_sampled_with_a_limited_share(
    reach_store: EpisodeStore, push_store: EpisodeStore
) -> None:
    is_after = []
    for store in (reach_store, push_store):
        for success in store.steps_by_episode("success"):
            is_after.append(np.arange(len(success)) > success.argmax())
    is_after_T = torch.from_numpy(np.concatenate(is_after))
    for limit in (1.0, 0.1, 0.0):
        sampler = load(reach_store, push_store, max_share_after_success=limit)
        torch.manual_seed(0)
        sampled = sampler.sample(20_000)
        assert sampler.tasks_T[sampled].float().mean().item() == pytest.approx(0.5, abs=0.02)
        for task in (0, 1):
            of_task = sampler.train_steps[sampler.tasks_T[sampler.train_steps] == task]
            share = min(limit, is_after_T[of_task].float().mean().item())
            measured = is_after_T[sampled[sampler.tasks_T[sampled] == task]].float().mean().item()
            assert measured == pytest.approx(share, abs=0.02)


def test_the_split_is_by_episode() -> None:
    train, val = split_episodes(50, 0.1, seed=0)
    assert len(val) == 5
    assert sorted([*train, *val]) == list(range(50))
    assert len(split_episodes(2, 0.1, seed=0)[1]) == 1
    with pytest.raises(DatasetError, match="collect more"):
        split_episodes(1, 0.1, seed=0)


def test_chunks_as_a_torch_dataset(reach_store: EpisodeStore, push_store: EpisodeStore) -> None:
    dataset = ChunkDataset([reach_store.path, push_store], chunk_size=8)
    assert len(dataset) == reach_store.num_steps + push_store.num_steps
    assert dataset.tasks == ("reach-v3", "push-v3")
    last = dataset[int(reach_store.episode_ends[0]) - 1]
    assert last["is_pad"].tolist() == [False] + 7 * [True]
    assert np.array_equal(last["actions"][0].numpy(), reach_store[0].steps["action"][-1])
    assert dataset[-1]["task"] == 1
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    shapes = {name: tuple(values.shape) for name, values in batch.items()}
    assert shapes == {"state": (4, 39), "task": (4,), "actions": (4, 8, 4), "is_pad": (4, 8)}
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(TypeError, match="is not the number of an item"):
        dataset[:2]  # type: ignore[index]
    assert len(ChunkDataset(str(reach_store.path), chunk_size=8)) == reach_store.num_steps, "one path is not a sequence"
