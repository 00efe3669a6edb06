"""From predicted chunks to actions, for many environments at once, each with a state of its own.

Shapes: B queried environments, K chunk, A action, N actions carried out per query.
"""

from __future__ import annotations

import numpy as np

from act_kit.config import ExecutionConfig


class ChunkExecutor:
    """Decides which actions to carry out: the first ``execute`` of a chunk, or an average over overlapping chunks."""

    def __init__(self, config: ExecutionConfig, chunk_size: int, action_dim: int) -> None:
        self.config = config
        self.chunk_size = chunk_size
        self.action_dim = action_dim
        self._history: dict[int, np.ndarray] = {}

    @property
    def actions_per_query(self) -> int:
        """N: how many actions :meth:`plan` returns."""
        return 1 if self.config.ensemble else self.config.execute

    def reset(self, rows: np.ndarray) -> None:
        """Forget what was predicted for these environments: a new episode begins there."""
        for row in rows:
            self._history.pop(int(row), None)

    def plan(self, chunks_BKA: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        """Return the next actions (B, N, A) of environments ``rows_B``, given the chunks just predicted for them."""
        if not self.config.ensemble:
            return chunks_BKA[:, : self.config.execute]
        return np.stack([self._average(int(row), chunk) for row, chunk in zip(rows_B, chunks_BKA, strict=True)])

    def _average(self, row: int, chunk_KA: np.ndarray) -> np.ndarray:
        # history[i] is what the i-th oldest living prediction says of this step and those after it.
        history = self._history.get(row, np.empty((0, self.chunk_size, self.action_dim), dtype=chunk_KA.dtype))
        shifted = np.concatenate([history[:, 1:], np.zeros_like(history[:, :1])], axis=1)
        if len(shifted) == self.chunk_size:
            shifted = shifted[1:]  # the oldest has nothing left to say
        history = np.concatenate([shifted, chunk_KA[None]])
        self._history[row] = history
        weights = np.exp(-self.config.ensemble_decay * np.arange(len(history)))
        mean: np.ndarray = np.einsum("i,ia->a", weights / weights.sum(), history[:, 0])
        return mean[None].astype(chunk_KA.dtype)
