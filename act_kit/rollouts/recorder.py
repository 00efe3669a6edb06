"""Recorder of a running episode, which every loop that steps a simulator fills."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from act_kit.rollouts.episode import Episode
from act_kit.sim.engine import NO_STEPS, StepBatch, clip_actions, concatenate
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, HORIZON


@dataclass(frozen=True, kw_only=True)
class EpisodeRules:
    """How an episode begins and ends.

    Attributes:
        horizon: Number of steps after which it ends. Together with the settle steps, at most Meta-World's 500.
        settle_steps: Zero actions that are executed first. They are not part of the episode: it begins in the state
            after them, and a success during them does not count.
        ends_at_success: True if it ends with its first successful step, also within a chunk of actions.
    """

    horizon: int = HORIZON
    settle_steps: int = 0
    ends_at_success: bool = False


BENCHMARK_RULES = EpisodeRules()
"""Meta-World's rules: 500 steps, whatever happens."""


class EpisodeRecorder:
    """Recorder of one episode.

    Attributes:
        init_state: Initial state.
        attempt: Number of the episode in its collection or rollout.
        state: Current state, float64 (39,).
        num_steps: Number of steps so far.
        success_step: First successful step, or None.
        query_steps: Steps before which the agent planned.
        crash: Error message of the simulation or of the agent, or None.
    """

    state: np.ndarray

    def __init__(
        self,
        init_state: InitialState,
        *,
        attempt: int = 0,
        source: str = "",
        rules: EpisodeRules = BENCHMARK_RULES,
    ) -> None:
        self.init_state = init_state
        self.attempt = attempt
        self.num_steps = 0
        self.success_step: int | None = None
        self.query_steps: list[int] = []
        self.crash: str | None = None
        self._source = source
        self._rules = rules
        self._actions: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._batches: list[StepBatch] = []

    def begin(self, state: np.ndarray, distance: float) -> None:
        """Record the state, float64 (39,), and the distance after the reset."""
        self.state = self._initial_state = state
        self._initial_distance = distance

    @property
    def succeeded(self) -> bool:
        """True once a step has succeeded."""
        return self.success_step is not None

    def plan(self, actions: np.ndarray, labels: np.ndarray) -> None:
        """Record the next actions (N, 4), before clipping, and the actions to imitate (N, 4)."""
        self.query_steps.append(self.num_steps)
        self._actions.append(actions)
        self._labels.append(labels)

    def record(self, step_batch: StepBatch) -> None:
        """Record the results of the first T planned actions: the others were not executed."""
        if self._rules.ends_at_success and step_batch.success.any():
            step_batch = _first_steps(step_batch, int(np.argmax(step_batch.success)) + 1)
        if self.success_step is None and step_batch.success.any():
            self.success_step = self.num_steps + int(np.argmax(step_batch.success))
        self._batches.append(step_batch)
        self.num_steps += len(step_batch)
        if len(step_batch):
            self.state = step_batch.state[-1]

    def steps_left(self, steps_after_success: int | None) -> int:
        """Return the number of steps until ``steps_after_success`` after the first success, or to the horizon."""
        end = min(self._rules.horizon, HORIZON - self._rules.settle_steps)
        if self._rules.ends_at_success:
            steps_after_success = 0
        if steps_after_success is not None and self.success_step is not None:
            end = min(end, self.success_step + 1 + steps_after_success)
        return max(0, end - self.num_steps)

    def episode(self, notes: Any = None) -> Episode:
        """Return the episode so far, with what the agent keeps of it."""
        lengths = [len(batch) for batch in self._batches]
        planned = _executed_part(self._actions, lengths)
        executed = clip_actions(planned)
        results = concatenate(self._batches) if self._batches else NO_STEPS
        states = np.concatenate([self._initial_state[None], results.state])
        return Episode(
            state=states[:-1],
            action=clip_actions(_executed_part(self._labels, lengths)),
            executed_action=executed,
            reward=results.reward,
            success=results.success,
            distance=results.distance,
            physics=results.physics,
            last_state=states[-1],
            init_state=self.init_state,
            source=self._source,
            attempt=self.attempt,
            settle_steps=self._rules.settle_steps,
            initial_distance=self._initial_distance,
            query_steps=np.array(self.query_steps, dtype=np.int64),
            clip_fraction=int((np.abs(planned) > 1).sum()) / max(1, planned.size),
            crash=self.crash,
            notes=notes,
        )


def _first_steps(step_batch: StepBatch, num: int) -> StepBatch:
    """Return the results of the first ``num`` actions."""
    arrays: dict[str, np.ndarray | None] = {}
    for field in fields(StepBatch):
        values = getattr(step_batch, field.name)
        arrays[field.name] = None if values is None else values[:num]
    return StepBatch(**arrays)  # type: ignore[arg-type]


def _executed_part(chunks: list[np.ndarray], lengths: list[int]) -> np.ndarray:
    """Concatenate the first T rows of each planned chunk; after a crash, the last chunk has no length."""
    parts = [chunk[:num] for chunk, num in zip(chunks, lengths, strict=False)]
    return np.concatenate([np.empty((0, ACTION_DIM), dtype=np.float32), *parts])
