"""Datasets as training sees them: at every step what is observed, and the chunk of actions that follows it.

Shapes: B batch, T steps of all episodes of all datasets, K chunk, S state, A action, C cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from act_kit.arrays import as_index
from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B windows, on the device.

    Attributes:
        states_BS: float32, raw.
        tasks_B: int64, numbers of their tasks.
        images_BCHW3: uint8, or None.
        actions_BKA: float32.
        is_pad_BK: bool, true beyond the end of the episode, where the action is a copy of the episode's last and must
            not be learnt.
    """

    states_BS: Tensor
    tasks_B: Tensor
    images_BCHW3: Tensor | None
    actions_BKA: Tensor
    is_pad_BK: Tensor


@dataclass(frozen=True, kw_only=True)
class ChunkSampler:
    """Every step of some datasets, resident on one device, from which windows are gathered by index.

    Attributes:
        states_TS: float32, the states.
        actions_TA: float32, the actions to imitate.
        last_T: int64, the last step of each step's episode.
        tasks_T: int64, the number of each step's task.
        images_TCHW3: uint8, or None; perhaps on the host, in memory or in a file.
        chunk_size: K.
        train_steps: int64, the steps of the training episodes, task after task.
        num_per_task: How many of them each task has.
        val_steps: int64, the steps of the validation episodes.
    """

    states_TS: Tensor
    actions_TA: Tensor
    last_T: Tensor
    tasks_T: Tensor
    images_TCHW3: Tensor | None
    chunk_size: int
    train_steps: Tensor
    num_per_task: tuple[int, ...]
    val_steps: Tensor

    @property
    def num_train(self) -> int:
        """Steps of the training episodes."""
        return len(self.train_steps)

    @property
    def num_val(self) -> int:
        """Steps of the validation episodes."""
        return len(self.val_steps)

    def draw(self, num: int) -> Tensor:
        """Draw ``num`` training steps, int64: every task as often, whatever it has of them."""
        device = self.train_steps.device
        if len(self.num_per_task) == 1:
            return self.train_steps[torch.randint(len(self.train_steps), (num,), device=device)]
        sizes = torch.tensor(self.num_per_task, device=device)
        tasks_B = torch.randint(len(sizes), (num,), device=device)
        within_B = (torch.rand(num, device=device, dtype=torch.float64) * sizes[tasks_B]).long()
        return self.train_steps[(sizes.cumsum(0) - sizes)[tasks_B] + within_B]

    def gather(self, steps_B: Tensor) -> Batch:
        """Return the windows that begin at ``steps_B``, int64."""
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
    stores: Sequence[EpisodeStore], *, chunk_size: int, val_fraction: float, seed: int, device: torch.device,
    images_TCHW3: Tensor | None = None,
) -> ChunkSampler:  # fmt: skip
    """Load datasets onto ``device``, one after the other, and split the episodes of each."""
    tasks = list(dict.fromkeys(store.info.task for store in stores))
    base = np.cumsum([0, *(store.num_steps for store in stores)])
    train: list[list[np.ndarray]] = [[] for _ in tasks]
    val: list[list[np.ndarray]] = [[] for _ in tasks]
    splits = split_stores(stores, val_fraction, seed)
    for store, first, split in zip(stores, base[:-1], splits, strict=True):
        steps = np.split(first + np.arange(store.num_steps), store.episode_ends[:-1])
        for part, episodes in zip((train, val), split, strict=True):
            part[tasks.index(store.info.task)] += [steps[episode] for episode in episodes]
    return ChunkSampler(
        **_load_steps(stores, device),
        images_TCHW3=images_TCHW3,
        chunk_size=chunk_size,
        train_steps=torch.from_numpy(np.concatenate([steps for of_task in train for steps in of_task])).to(device),
        num_per_task=tuple(sum(map(len, of_task)) for of_task in train),
        val_steps=torch.from_numpy(np.concatenate([steps for of_task in val for steps in of_task])).to(device),
    )


def _load_steps(stores: Sequence[EpisodeStore], device: torch.device) -> dict[str, Tensor]:
    """Load what :class:`ChunkSampler` holds of every step."""
    tasks = list(dict.fromkeys(store.info.task for store in stores))
    numbers = [tasks.index(store.info.task) for store in stores]
    lengths = [store.num_steps for store in stores]
    firsts = np.cumsum([0, *lengths])[:-1]
    last = [first + np.repeat(s.episode_ends - 1, s.episode_lengths) for s, first in zip(stores, firsts, strict=True)]
    arrays = {
        "states_TS": np.concatenate([store.steps("state").astype(np.float32) for store in stores]),
        "actions_TA": np.concatenate([store.steps("action") for store in stores]),
        "last_T": np.concatenate(last),
        "tasks_T": np.repeat(numbers, lengths),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


class ChunkDataset(Dataset[dict[str, Tensor]]):
    """Every step of some datasets with the chunk of actions that follows it, for a ``torch.utils.data.DataLoader``.

    Item i is a dict: ``state`` float32 (39,), ``task`` int64, its number among ``tasks``, ``actions`` float32 (K, 4),
    ``is_pad`` bool (K,), true beyond the end of the episode. Training does not use it: see :class:`ChunkSampler`.

    Attributes:
        tasks: Their names.
    """

    def __init__(
        self, datasets: EpisodeStore | str | Path | Sequence[EpisodeStore | str | Path], *, chunk_size: int
    ) -> None:
        """Load one dataset or several, opened or by their path, with chunks of K = ``chunk_size`` actions.

        Raises:
            ConfigError: ``chunk_size`` is less than 1, or there are no datasets.
        """
        datasets = [datasets] if isinstance(datasets, (EpisodeStore, str, Path)) else datasets
        if chunk_size < 1 or not datasets:
            raise ConfigError(f"chunk_size={chunk_size} of {len(datasets)} datasets: expected at least 1 of each.")
        stores = [each if isinstance(each, EpisodeStore) else EpisodeStore.open(each) for each in datasets]
        self.tasks = tuple(dict.fromkeys(store.info.task for store in stores))
        nothing = torch.zeros(0, dtype=torch.int64)
        self._windows = ChunkSampler(
            **_load_steps(stores, torch.device("cpu")),
            images_TCHW3=None,
            chunk_size=chunk_size,
            train_steps=nothing,
            num_per_task=(),
            val_steps=nothing,
        )

    def __len__(self) -> int:
        return len(self._windows.states_TS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return step ``index``, over the episodes of all datasets one after the other."""
        batch = self._windows.gather(torch.tensor([as_index(index, len(self), "item of the chunks")]))
        names = {
            "state": batch.states_BS,
            "task": batch.tasks_B,
            "actions": batch.actions_BKA,
            "is_pad": batch.is_pad_BK,
        }
        return {name: rows[0] for name, rows in names.items()}
