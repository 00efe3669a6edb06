"""From predicted chunks to actions, for many environments at once, each with a state of its own.

Shapes: B queried environments, K chunk, A action, N actions carried out per query.
"""

from __future__ import annotations

import numpy as np

from act_kit.arrays import as_array, as_row_numbers
from act_kit.config import ChunkingConfig


class ActionChunker:
    """Decides which actions to carry out: the first ``execute`` of a chunk, or an average over overlapping chunks."""

    def __init__(self, config: ChunkingConfig, chunk_size: int, action_dim: int) -> None:
        self.config = config
        self.chunk_size = chunk_size
        self.action_dim = action_dim
        self._history: dict[int, np.ndarray] = {}

    @property
    def actions_per_query(self) -> int:
        """N: how many actions :meth:`plan` returns."""
        return 1 if self.config.temporal_ensemble else self.config.n_action_steps

    def reset(self, rows: np.ndarray) -> None:
        """Forget what was predicted for these environments, int (B,): a new episode begins there."""
        for row in as_row_numbers(rows, "rows").tolist():
            self._history.pop(row, None)

    def plan(self, chunks_BKA: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        """Return the next actions (B, N, A) of environments ``rows_B``, given the chunks just predicted for them.

        Raises:
            ArrayError: There is not one finite chunk for each of some different environments.
        """
        rows_B = as_row_numbers(rows_B, "rows")
        chunks_BKA = as_array(chunks_BKA, "chunks", (len(rows_B), self.chunk_size, self.action_dim))
        if not self.config.temporal_ensemble:
            return chunks_BKA[:, : self.config.n_action_steps]
        planned_BNA = np.empty((len(rows_B), 1, self.action_dim), dtype=chunks_BKA.dtype)
        for index, row in enumerate(rows_B.tolist()):
            planned_BNA[index] = self._average(row, chunks_BKA[index])
        return planned_BNA

    def _average(self, row: int, chunk_KA: np.ndarray) -> np.ndarray:
        # history[i] is what the i-th oldest living prediction says of this step and those after it.
        history = self._history.get(row, np.empty((0, self.chunk_size, self.action_dim), dtype=chunk_KA.dtype))
        shifted = np.concatenate([history[:, 1:], np.zeros_like(history[:, :1])], axis=1)
        if len(shifted) == self.chunk_size:
            shifted = shifted[1:]  # the oldest has nothing left to say
        history = np.concatenate([shifted, chunk_KA[None]])
        self._history[row] = history
        weights = np.exp(-self.config.temporal_ensemble_coeff * np.arange(len(history)))
        mean: np.ndarray = np.einsum("i,ia->a", weights / weights.sum(), history[:, 0])
        return mean[None].astype(chunk_KA.dtype)
