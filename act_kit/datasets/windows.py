"""Datasets as training sees them: at every step what is observed, and the chunk of actions that follows it.

Shapes: B batch, T steps of all episodes of all datasets, K chunk, S state, A action, C cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore


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
class Windows:
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


def load_windows(
    stores: Sequence[EpisodeStore], *, chunk_size: int, val_fraction: float, seed: int, device: torch.device,
    images_TCHW3: Tensor | None = None,
) -> Windows:  # fmt: skip
    """Load datasets onto ``device``, one after the other, and split the episodes of each."""
    tasks = list(dict.fromkeys(store.info.task for store in stores))
    base = np.cumsum([0, *(store.num_steps for store in stores)])
    last = [np.repeat(store.episode_ends - 1, store.episode_lengths) for store in stores]
    train: list[list[np.ndarray]] = [[] for _ in tasks]
    val: list[list[np.ndarray]] = [[] for _ in tasks]
    splits = split_stores(stores, val_fraction, seed)
    for store, first, split in zip(stores, base[:-1], splits, strict=True):
        steps = np.split(first + np.arange(store.num_steps), store.episode_ends[:-1])
        for part, episodes in zip((train, val), split, strict=True):
            part[tasks.index(store.info.task)] += [steps[episode] for episode in episodes]
    return Windows(
        states_TS=torch.from_numpy(np.concatenate([s.steps("state").astype(np.float32) for s in stores])).to(device),
        actions_TA=torch.from_numpy(np.concatenate([store.steps("action") for store in stores])).to(device),
        last_T=torch.from_numpy(np.concatenate([b + part for b, part in zip(base, last, strict=False)])).to(device),
        tasks_T=torch.from_numpy(
            np.repeat([tasks.index(store.info.task) for store in stores], [store.num_steps for store in stores])
        ).to(device),
        images_TCHW3=images_TCHW3,
        chunk_size=chunk_size,
        train_steps=torch.from_numpy(np.concatenate([steps for of_task in train for steps in of_task])).to(device),
        num_per_task=tuple(sum(map(len, of_task)) for of_task in train),
        val_steps=torch.from_numpy(np.concatenate([steps for of_task in val for steps in of_task])).to(device),
    )
