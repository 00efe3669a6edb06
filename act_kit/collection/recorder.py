"""Recording an episode while an operator demonstrates it, one step at a time."""

from __future__ import annotations

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError
from act_kit.rollouts.episode import Episode
from act_kit.sim.engine import StepBatch
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import ACTION_DIM


def as_action(action: np.ndarray, what: str) -> np.ndarray:
    """Return an action as float32 (4,); raise :class:`ArrayError` unless it is one, in [-1, 1]."""
    given = as_array(action, f"The {what}", (ACTION_DIM,))
    if np.abs(given).max() > 1:
        raise ArrayError(f"The {what} {given.tolist()}: expected numbers in [-1, 1]. Fix: np.clip(action, -1, 1)")
    return given.astype(np.float32)


class Recorder:
    """Steps a simulator and keeps what is seen, until some steps after the first success, or to the horizon.

    Attributes:
        start: Where the episode began.
        state: What is seen now, float64 (39,).
        steps_left: Steps until the episode is over.
        succeeded: Whether a step has succeeded.
    """

    def __init__(self, simulator: Simulator, *, steps_after_success: int, rewards: bool = False) -> None:
        self.simulator = simulator
        self._steps_after_success = steps_after_success
        self._rewards = rewards

    def begin(self, init_state: InitialState) -> None:
        """Reset to ``init_state`` and forget what was recorded before."""
        self.init_state = init_state
        self.state = self.simulator.reset(init_state)
        self.steps_left = self.simulator.steps_left
        self.succeeded = False
        self._rows: dict[str, list[np.ndarray]] = {
            name: [] for name in ("state", "action", "executed_action", "physics")
        }
        self._segments: list[StepBatch] = []

    def __len__(self) -> int:
        return len(self._segments)

    def step(self, action: np.ndarray, executed: np.ndarray) -> None:
        """Carry out ``executed`` where ``action`` is to be imitated; (4,) in [-1, 1], both.

        Raises:
            ArrayError: One of them is something else.
        """
        label, done = as_action(action, "action"), as_action(executed, "executed action")
        for name, value in (
            ("state", self.state), ("action", label), ("executed_action", done),
            ("physics", self.simulator.physics()),
        ):  # fmt: skip
            self._rows[name].append(value)
        step_batch = self.simulator.step_chunk(done[None], rewards=self._rewards)
        self._segments.append(step_batch)
        self.state = step_batch.state[-1]
        if step_batch.success[-1] and not self.succeeded:
            self.succeeded = True
            self.steps_left = min(self.steps_left, self._steps_after_success + 1)
        self.steps_left -= 1

    @property
    def succeeds_now(self) -> bool:
        """Whether the last step succeeded."""
        return bool(self._segments and self._segments[-1].success[-1])

    def episode(self, *, attempt: int, source: str) -> Episode:
        """Return what was recorded since :meth:`begin`, at least one step."""
        segments = self._segments
        return Episode(
            init_state=self.init_state,
            attempt=attempt,
            source=source,
            **{name: np.stack(values) for name, values in self._rows.items()},
            success=np.concatenate([step_batch.success for step_batch in segments]),
            distance=np.concatenate([step_batch.distance for step_batch in segments]),
            reward=np.concatenate([s.reward for s in segments if s.reward is not None]) if self._rewards else None,
        )
