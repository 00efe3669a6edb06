"""Datasets for training: each sample is an observation and the chunk of actions that follows it.

Shapes: B batch, T steps of all episodes of all datasets, K chunk, S state, A action, C cameras.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from act_kit.arrays import as_index
from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore, tasks_of
from act_kit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B training samples, on the device.

    Attributes:
        states_BS: float32, not normalized.
        tasks_B: int64, task indices.
        images_BCHW3: uint8, or None.
        actions_BKA: float32.
        is_pad_BK: bool, true beyond the end of the episode, where the action repeats the episode's last action and must
            be excluded from the loss.
    """

    states_BS: Tensor
    tasks_B: Tensor
    images_BCHW3: Tensor | None
    actions_BKA: Tensor
    is_pad_BK: Tensor


@dataclass(frozen=True, kw_only=True)
class ChunkSampler:
    """All steps of several datasets, resident on one device, from which samples are gathered by step index.

    Attributes:
        states_TS: float32, the states.
        actions_TA: float32, the actions to imitate.
        first_T, last_T: int64, the first and the last step of each step's episode.
        tasks_T: int64, the task index of each step.
        images_TCHW3: uint8, or None; on the device or on the host, in memory or in a file.
        chunk_size: K.
        train_steps: int64, the steps of the training episodes.
        cumulative_T: float64, the cumulative probabilities of ``train_steps``.
        val_steps: int64, the steps of the validation episodes.
        cameras_C34: float32, the matrices of the cameras, for keypoints.
    """

    states_TS: Tensor
    actions_TA: Tensor
    first_T: Tensor
    last_T: Tensor
    tasks_T: Tensor
    images_TCHW3: Tensor | None
    chunk_size: int
    train_steps: Tensor
    cumulative_T: Tensor
    val_steps: Tensor
    cameras_C34: Tensor | None = None

    @property
    def num_train(self) -> int:
        """Number of steps in the training episodes."""
        return len(self.train_steps)

    @property
    def num_val(self) -> int:
        """Number of steps in the validation episodes."""
        return len(self.val_steps)

    def sample(self, num: int) -> Tensor:
        """Sample ``num`` training steps, int64, with their probabilities."""
        uniform = torch.rand(num, device=self.cumulative_T.device, dtype=torch.float64)
        indices = torch.searchsorted(self.cumulative_T, uniform * self.cumulative_T[-1], right=True)
        return self.train_steps[indices.clamp(max=self.num_train - 1)]

    def first_states(self, steps_B: Tensor) -> Tensor:
        """Return the first states (B, S) of the episodes that the steps are of."""
        return self.states_TS[self.first_T[steps_B]]

    def gather(self, steps_B: Tensor) -> Batch:
        """Return the samples that begin at ``steps_B``, int64."""
        slots_BK = steps_B[:, None] + torch.arange(self.chunk_size, device=steps_B.device)
        last_B1 = self.last_T[steps_B][:, None]
        images_BCHW3 = None
        if self.images_TCHW3 is not None:
            images_BCHW3 = self.images_TCHW3[steps_B.to(self.images_TCHW3.device)].to(steps_B.device)
        return Batch(
            states_BS=self.states_TS[steps_B],
            tasks_B=self.tasks_T[steps_B],
            images_BCHW3=images_BCHW3,
            actions_BKA=self.actions_TA[slots_BK.minimum(last_B1)],
            is_pad_BK=slots_BK > last_B1,
        )


def load_chunk_sampler(
    stores: Sequence[EpisodeStore],
    *,
    chunk_size: int,
    val_fraction: float,
    max_share_after_success: float,
    seed: int,
    device: torch.device,
    images_TCHW3: Tensor | None = None,
    cameras_C34: Tensor | None = None,
) -> ChunkSampler:
    """Load datasets onto ``device`` and split the episodes of each into training and validation.

    Each task is sampled with equal probability, whatever its number of steps, and in each task the steps after the
    first success with at most ``max_share_after_success``.
    """
    steps = _load_steps(stores, device)
    is_val: list[np.ndarray] = []
    for store, (_, val_episodes) in zip(stores, split_stores(stores, val_fraction, seed), strict=True):
        is_val_episode = np.isin(np.arange(store.num_episodes), val_episodes)
        is_val.append(np.repeat(is_val_episode, store.episode_lengths))
    is_val_T = torch.from_numpy(np.concatenate(is_val)).to(device)
    is_after_T = torch.from_numpy(np.concatenate(list(map(_is_after_success, stores)))).to(device)
    weights_T = torch.zeros(len(is_val_T), dtype=torch.float64, device=device)
    for task in range(len(tasks_of(stores))):
        is_train_T = (steps["tasks_T"] == task) & ~is_val_T
        num_after = int((is_train_T & is_after_T).sum())
        num_before = int(is_train_T.sum()) - num_after
        share_after = num_after / (num_before + num_after)
        if num_before:
            share_after = min(share_after, max_share_after_success)
        weights_T[is_train_T & is_after_T] = share_after / max(1, num_after)
        weights_T[is_train_T & ~is_after_T] = (1 - share_after) / max(1, num_before)
    train_steps = (~is_val_T).nonzero()[:, 0]
    return ChunkSampler(
        **steps,
        images_TCHW3=images_TCHW3,
        cameras_C34=cameras_C34,
        chunk_size=chunk_size,
        train_steps=train_steps,
        cumulative_T=weights_T[train_steps].cumsum(0),
        val_steps=is_val_T.nonzero()[:, 0],
    )


def _is_after_success(store: EpisodeStore) -> np.ndarray:
    """Return bool (T,): True in the steps after the first success of their episode."""
    if "success" not in store.fields:
        return np.zeros(store.num_steps, dtype=bool)
    is_after: list[np.ndarray] = []
    for success in store.steps_by_episode("success"):
        num_successes = np.cumsum(success)
        is_after.append(num_successes - success > 0)
    return np.concatenate(is_after)


def _load_steps(stores: Sequence[EpisodeStore], device: torch.device) -> dict[str, Tensor]:
    """Load the per-step tensors of :class:`ChunkSampler`, except images."""
    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    first, tasks = 0, tasks_of(stores)
    for store in stores:
        arrays["states_TS"].append(store.steps("state").astype(np.float32))
        arrays["actions_TA"].append(store.steps("action"))
        first_E = first + store.episode_ends - store.episode_lengths
        arrays["first_T"].append(np.repeat(first_E, store.episode_lengths))
        arrays["last_T"].append(first + np.repeat(store.episode_ends - 1, store.episode_lengths))
        arrays["tasks_T"].append(np.full(store.num_steps, tasks.index(store.info.task)))
        first += store.num_steps
    return {name: torch.from_numpy(np.concatenate(parts)).to(device) for name, parts in arrays.items()}


class ChunkDataset(Dataset[dict[str, Tensor]]):
    """All steps of several datasets with the chunk of actions that follows each, for ``torch.utils.data.DataLoader``.

    Item i is a dict: ``state`` float32 (39,), ``task`` int64, its index in ``tasks``, ``actions`` float32 (K, 4),
    ``is_pad`` bool (K,), true beyond the end of the episode. Training uses :class:`ChunkSampler` instead.

    Attributes:
        tasks: Names of the tasks.
    """

    def __init__(
        self, datasets: EpisodeStore | str | Path | Sequence[EpisodeStore | str | Path], *, chunk_size: int
    ) -> None:
        """Load one or several datasets, given as stores or paths, with chunks of K = ``chunk_size`` actions.

        Raises:
            ConfigError: ``chunk_size`` is less than 1, or ``datasets`` is empty.
        """
        datasets = [datasets] if isinstance(datasets, (EpisodeStore, str, Path)) else datasets
        if chunk_size < 1 or not datasets:
            raise ConfigError(f"chunk_size={chunk_size}, {len(datasets)} datasets: both must be at least 1.")
        stores = [each if isinstance(each, EpisodeStore) else EpisodeStore.open(each) for each in datasets]
        self.tasks = tasks_of(stores)
        no_steps = torch.zeros(0, dtype=torch.int64)
        self._sampler = ChunkSampler(
            **_load_steps(stores, torch.device("cpu")),
            images_TCHW3=None,
            chunk_size=chunk_size,
            train_steps=no_steps,
            cumulative_T=torch.zeros(0, dtype=torch.float64),
            val_steps=no_steps,
        )

    def __len__(self) -> int:
        return len(self._sampler.states_TS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the sample at step ``index``, counted over all datasets in order."""
        batch = self._sampler.gather(torch.tensor([as_index(index, len(self), "item of the dataset")]))
        fields = {"state": batch.states_BS, "task": batch.tasks_B}
        fields |= {"actions": batch.actions_BKA, "is_pad": batch.is_pad_BK}
        return {name: values_B[0] for name, values_B in fields.items()}
