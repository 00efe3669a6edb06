"""Which demonstrations a training learns from, and which it validates with."""

from __future__ import annotations

import numpy as np

from act_kit.errors import DatasetError

VAL_FRACTION, SPLIT_SEED = 0.1, 0
"""What ``act train`` uses unless told otherwise."""


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
