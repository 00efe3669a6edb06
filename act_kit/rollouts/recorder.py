"""Recorder of a running episode, which every loop that steps a simulator fills."""

from __future__ import annotations

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.sim.engine import StepBatch
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, HORIZON

_RESULTS = ("success", "distance", "reward", "physics")


class EpisodeRecorder:
    """Recorder of one episode.

    Attributes:
        init_state: Initial state.
        attempt: Number of the episode in its collection or rollout.
        state: Current state, float64 (39,).
        num_steps: Number of steps so far.
        success_step: First successful step, or None.
        query_steps: Steps before which the agent planned.
        crash: Error message of the simulation, or None.
    """

    state: np.ndarray

    def __init__(self, init_state: InitialState, *, attempt: int = 0, source: str = "") -> None:
        self.init_state = init_state
        self.attempt = attempt
        self.num_steps = 0
        self.success_step: int | None = None
        self.query_steps: list[int] = []
        self.crash: str | None = None
        self._source = source
        self._num_clipped = 0
        no_actions = np.empty((0, ACTION_DIM), dtype=np.float32)
        self._arrays: dict[str, list[np.ndarray]] = {
            "action": [no_actions],
            "executed_action": [no_actions],
            "success": [np.empty(0, dtype=bool)],
            "distance": [np.empty(0)],
        }

    def begin(self, state: np.ndarray, distance: float) -> None:
        """Record the state, float64 (39,), and the distance after the reset."""
        self.state = state
        self._states = [state[None]]
        self._initial_distance = distance

    @property
    def succeeded(self) -> bool:
        """True once a step has succeeded."""
        return self.success_step is not None

    def record(self, step_batch: StepBatch, actions: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Record the results of planned ``actions`` (N, 4), before clipping, of which the first T were executed.

        ``labels``, float32 (N, 4) in [-1, 1], are the actions to imitate, if they are not the executed ones.
        """
        num = len(step_batch)
        planned = actions[:num]
        clipped = np.minimum(np.maximum(planned, -1.0), 1.0)
        self._num_clipped += int(np.count_nonzero(clipped != planned))
        executed = clipped.astype(np.float32)
        self._arrays["executed_action"].append(executed)
        self._arrays["action"].append(executed if labels is None else labels[:num])
        for name in _RESULTS:
            values = getattr(step_batch, name)
            if values is not None:
                self._arrays.setdefault(name, []).append(values)
        self._states.append(step_batch.state)
        if self.success_step is None and step_batch.success.any():
            self.success_step = self.num_steps + int(np.argmax(step_batch.success))
        self.num_steps += num
        self.state = step_batch.state[-1] if num else self.state

    def steps_left(self, steps_after_success: int | None) -> int:
        """Return the number of steps until ``steps_after_success`` after the first success, or to the horizon."""
        end = HORIZON
        if steps_after_success is not None and self.success_step is not None:
            end = min(end, self.success_step + 1 + steps_after_success)
        return max(0, end - self.num_steps)

    def episode(self) -> Episode:
        """Return the episode so far."""
        states = np.concatenate(self._states)
        arrays = {name: np.concatenate(values) for name, values in self._arrays.items()}
        return Episode(
            state=states[:-1],
            last_state=states[-1],
            init_state=self.init_state,
            source=self._source,
            attempt=self.attempt,
            initial_distance=self._initial_distance,
            query_steps=np.array(self.query_steps, dtype=np.int64),
            clip_fraction=self._num_clipped / max(1, ACTION_DIM * self.num_steps),
            crash=self.crash,
            **arrays,  # type: ignore[arg-type]
        )
