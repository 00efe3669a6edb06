"""A dataset as training sees it: at every step the state, and the chunk of actions that follows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError

# Shapes: B batch, T steps of all episodes, K chunk, S state, A action.


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Steps of some episodes, resident on one device, from which windows are gathered by index.

    Attributes:
        states_TS: float32, the states.
        actions_TA: float32, the actions to imitate.
        last_T: int64, the last step of each step's episode.
        chunk_size: K.
    """

    states_TS: Tensor
    actions_TA: Tensor
    last_T: Tensor
    chunk_size: int

    def __len__(self) -> int:
        return len(self.states_TS)

    def gather(self, steps_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the windows that begin at ``steps_B``, int64.

        Returns:
            states (B, S) float32; actions (B, K, A) float32; is_pad (B, K) bool, true beyond the end of the episode,
            where the action is a copy of the episode's last and must not be learnt.
        """
        slots_BK = steps_B[:, None] + torch.arange(self.chunk_size, device=steps_B.device)
        last_B1 = self.last_T[steps_B][:, None]
        return self.states_TS[steps_B], self.actions_TA[slots_BK.minimum(last_B1)], slots_BK > last_B1


def split_episodes(num_episodes: int, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split whole episodes into training and validation, sorted int64; at least one of each.

    Raises:
        DatasetError: There are fewer than two.
    """
    if num_episodes < 2:
        raise DatasetError(f"{num_episodes} demonstrations cannot be split into training and validation: collect more.")
    num_val = max(1, round(num_episodes * val_fraction))
    order = np.random.default_rng(seed).permutation(num_episodes)
    return np.sort(order[num_val:]), np.sort(order[:num_val])


def load_windows(store: EpisodeStore, episodes: np.ndarray, chunk_size: int, device: torch.device) -> Windows:
    """Load the given episodes of a dataset onto ``device``."""
    ends, lengths = store.episode_ends[episodes], store.episode_lengths[episodes]
    steps = np.concatenate([np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)])
    return Windows(
        states_TS=torch.from_numpy(store.steps("state")[steps].astype(np.float32)).to(device),
        actions_TA=torch.from_numpy(store.steps("action")[steps]).to(device),
        last_T=torch.from_numpy(np.repeat(np.cumsum(lengths) - 1, lengths)).to(device),
        chunk_size=chunk_size,
    )
