"""Step-by-step recording of an episode while a demonstrator acts."""

from __future__ import annotations

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError
from act_kit.rollouts.episode import Episode
from act_kit.sim.engine import StepBatch
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import ACTION_DIM


def as_action(action: np.ndarray, name: str) -> np.ndarray:
    """Return an action as float32 (4,).

    Raises:
        ArrayError: It is not four numbers in [-1, 1].
    """
    given = as_array(action, f"The {name}", (ACTION_DIM,))
    if np.abs(given).max() > 1:
        raise ArrayError(f"The {name} is {given.tolist()}: expected numbers in [-1, 1]. Fix: np.clip(action, -1, 1)")
    return given.astype(np.float32)


class Recorder:
    """Recorder of one episode: steps a simulator until some steps after the first success, or to the horizon.

    Attributes:
        init_state: Initial state of the episode.
        state: Current state, float64 (39,).
        steps_left: Steps until the episode ends.
        succeeded: True once a step has succeeded.
    """

    def __init__(self, simulator: Simulator, *, steps_after_success: int, rewards: bool = False) -> None:
        self.simulator = simulator
        self._steps_after_success = steps_after_success
        self._rewards = rewards

    def begin(self, init_state: InitialState) -> None:
        """Reset to ``init_state`` and delete the previous recording."""
        self.init_state = init_state
        self.state = self.simulator.reset(init_state)
        self.steps_left = self.simulator.steps_left
        self.succeeded = False
        self._rows: dict[str, list[np.ndarray]] = {
            name: [] for name in ("state", "action", "executed_action", "physics")
        }
        self._batches: list[StepBatch] = []

    def __len__(self) -> int:
        return len(self._batches)

    def step(self, action: np.ndarray, executed: np.ndarray) -> None:
        """Execute ``executed`` and record it with ``action``, the label; both (4,) in [-1, 1].

        Raises:
            ArrayError: One of them is not such an action.
        """
        label, executed_action = as_action(action, "action"), as_action(executed, "executed action")
        self._rows["state"].append(self.state)
        self._rows["action"].append(label)
        self._rows["executed_action"].append(executed_action)
        self._rows["physics"].append(self.simulator.physics())
        batch = self.simulator.step_chunk(executed_action[None], rewards=self._rewards)
        self._batches.append(batch)
        self.state = batch.state[-1]
        if batch.success[-1] and not self.succeeded:
            self.succeeded = True
            self.steps_left = min(self.steps_left, self._steps_after_success + 1)
        self.steps_left -= 1

    @property
    def succeeds_now(self) -> bool:
        """True if the last step succeeded."""
        return bool(self._batches and self._batches[-1].success[-1])

    def episode(self, *, attempt: int, source: str) -> Episode:
        """Return the episode recorded since :meth:`begin`, of at least one step."""
        rows = {name: np.stack(values) for name, values in self._rows.items()}
        success = np.concatenate([batch.success for batch in self._batches])
        distance = np.concatenate([batch.distance for batch in self._batches])
        rewards = [batch.reward for batch in self._batches if batch.reward is not None]
        return Episode(
            init_state=self.init_state,
            attempt=attempt,
            source=source,
            **rows,
            success=success,
            distance=distance,
            reward=np.concatenate(rewards) if self._rewards else None,
        )
