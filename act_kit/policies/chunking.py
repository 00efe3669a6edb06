"""Action chunking: turns predicted chunks into actions for many environments at once, with separate state for each.

Shapes: B queried environments, K chunk, A action, N actions executed per query.
"""

from __future__ import annotations

import numpy as np

from act_kit.arrays import as_array, as_env_indices
from act_kit.config.training import ChunkingConfig


class ActionChunker:
    """Select the actions to execute: the first ``n_action_steps`` of a chunk, or an average of overlapping chunks."""

    def __init__(self, config: ChunkingConfig, chunk_size: int, action_dim: int) -> None:
        self.config = config
        self.chunk_size = chunk_size
        self.action_dim = action_dim
        self._history: dict[int, np.ndarray] = {}

    @property
    def actions_per_query(self) -> int:
        """N: number of actions that :meth:`plan` returns."""
        return 1 if self.config.temporal_ensemble else self.config.n_action_steps

    def reset(self, rows: np.ndarray) -> None:
        """Discard the predictions for these environments, int (B,), because a new episode begins there."""
        for row in as_env_indices(rows, "rows").tolist():
            self._history.pop(row, None)

    def plan(self, chunks_BKA: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        """Return the next actions (B, N, A) of environments ``rows_B``, given their newly predicted chunks.

        Raises:
            ArrayError: The environments are not distinct, or there is not one finite chunk for each.
        """
        rows_B = as_env_indices(rows_B, "rows")
        chunks_BKA = as_array(chunks_BKA, "chunks", (len(rows_B), self.chunk_size, self.action_dim))
        if not self.config.temporal_ensemble:
            return chunks_BKA[:, : self.config.n_action_steps]
        planned_BNA = np.empty((len(rows_B), 1, self.action_dim), dtype=chunks_BKA.dtype)
        for index, row in enumerate(rows_B.tolist()):
            planned_BNA[index] = self._average(row, chunks_BKA[index])
        return planned_BNA

    def _average(self, row: int, chunk_KA: np.ndarray) -> np.ndarray:
        # history[i]: the i-th oldest active prediction, from the current step on.
        history = self._history.get(row, np.empty((0, self.chunk_size, self.action_dim), dtype=chunk_KA.dtype))
        shifted = np.concatenate([history[:, 1:], np.zeros_like(history[:, :1])], axis=1)
        if len(shifted) == self.chunk_size:
            shifted = shifted[1:]  # the oldest prediction has ended
        history = np.concatenate([shifted, chunk_KA[None]])
        self._history[row] = history
        weights = np.exp(-self.config.temporal_ensemble_coeff * np.arange(len(history)))
        mean: np.ndarray = np.einsum("i,ia->a", weights / weights.sum(), history[:, 0])
        return mean[None].astype(chunk_KA.dtype)
