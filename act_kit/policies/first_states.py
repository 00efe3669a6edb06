"""The first states of running episodes, from which a policy recognizes its task.

Shapes: B queried environments, S state.
"""

from __future__ import annotations

import numpy as np

from act_kit.arrays import as_env_indices
from act_kit.policies.inputs import split_observations


class FirstStates:
    """The first state that a policy saw in the episode of each environment, held until the episode ends."""

    def __init__(self) -> None:
        self._states: dict[int, np.ndarray] = {}

    def reset(self, rows: np.ndarray) -> None:
        """Forget the states of these environments, int (B,), because a new episode begins there."""
        for row in as_env_indices(rows, "rows").tolist():
            self._states.pop(row, None)

    def of(self, rows: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return the first states (B, S) of environments ``rows`` (B,), which are now at ``states``.

        Raises:
            ArrayError: The states are not finite numbers of a supported shape; then none of them is kept.
        """
        states_BS, _ = split_observations(states)
        first_BS = states_BS.copy()
        for index, row in enumerate(rows.tolist()):
            if row not in self._states:
                self._states[row] = states_BS[index].copy()  # the caller may use its array again
            first_BS[index] = self._states[row]
        return first_BS
