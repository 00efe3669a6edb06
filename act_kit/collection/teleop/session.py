"""Teleoperation session, independent of the page: initial states, steering, kept and discarded episodes.

Time passes only while the operator steers: the clock starts with the first input, continues for a second after the last
one, so that the arm and the object it holds come to rest, and then waits. So a demonstration has no pauses, which a
policy would imitate, and an operator who stops to think uses no steps.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from act_kit.arrays import as_array
from act_kit.collection.collect import extend, make_dataset_info, reopen
from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.outputs import finish_output
from act_kit.rollouts.episode import AttemptRecord
from act_kit.rollouts.recorder import EpisodeRecorder
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator

SLOW = 0.25
"""Factor on the speed while the key for slow is held."""

SETTLE_S = 1.0
"""Seconds that time continues after the last input."""

Phase = Literal["ready", "running", "succeeded", "out of steps", "done"]
"""Phase of an episode: before the first input, in progress, ended with success, ended without; or dataset complete."""

OPEN, CLOSED = -1.0, 1.0


class Session:
    """Teleoperation of one dataset.

    Attributes:
        simulator: Simulator of the task.
        recorder: Recorder of this episode.
        phase: Phase of the episode.
        succeeds_now: True if the last step succeeded.
        attempt: Number of this attempt in the session. Commands include it, so that a late one has no effect.
        gripper: Commanded gripper action, -1 (open) or 1 (closed).
        num_kept: Number of kept episodes, also those of earlier sessions.
        num_discarded: Number of attempts that were not kept, also those of earlier sessions.
    """

    def __init__(self, config: CollectConfig, path: Path, simulator: Simulator, *, resume: bool = False) -> None:
        """Start a dataset at ``path``, or resume the existing one, of any operator.

        Raises:
            DatasetError: The dataset to resume was collected with other options, or its initial states depend on their
                number.
        """
        self.config = config
        self.path = path
        num_drawn = config.num_init_states or (config.n if config.init_distribution == "grid" else 4 * config.n + 100)
        # Not the scripted expert's initial states with this seed: merged with its demonstrations, these add new ones.
        self._init_states = InitialStateDistribution(config.task, config.init_distribution).sample(
            num_drawn, seed=config.seed, stream="teleop"
        )
        self._store = self._reopen() if resume and path.exists() else None
        self._attempts = self._store.attempts() if self._store else []
        self._unstored: list[AttemptRecord] = []
        self.num_kept = sum(attempt.kept for attempt in self._attempts)
        self.num_discarded = len(self._attempts) - self.num_kept
        # Resume after the last initial state that was kept, discarded or skipped.
        last = self._attempts[-1].init_state if self._attempts else None
        self._init_state_index = self._init_states.index(last) + 1 if last in self._init_states else 0
        self.simulator = simulator
        self._settle_steps = round(SETTLE_S * config.teleop.rate_hz)
        self.attempt = 0
        self.gripper = OPEN
        self.phase: Phase = "done"
        self._is_released = False
        self._begin_attempt()

    def _reopen(self) -> EpisodeStore:
        """Open the dataset to resume."""
        info = make_dataset_info(self.config, None)
        store = reopen(self.config, info, self.path)
        if store.info.num_wanted == self.config.n:
            return store
        recorded = {attempt.init_state for attempt in store.attempts()}
        return extend(store, info, depends_on_n=not recorded <= set(self._init_states))

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def init_state(self) -> InitialState:
        """Initial state of this episode."""
        return self.recorder.init_state

    @property
    def num_steps(self) -> int:
        """Number of steps of this episode so far."""
        return self.recorder.num_steps

    @property
    def succeeded(self) -> bool:
        """True once a step of this episode has succeeded."""
        return self.recorder.succeeded

    def init_states(self, *, kept: bool) -> np.ndarray:
        """Return the initial states of all attempts that were kept, or of those that were not; float64 (N, D)."""
        rows = [attempt.init_state.rand_vec for attempt in self._attempts if attempt.kept == kept]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self._init_states[0].rand_vec))

    # -- steering --------------------------------------------------------------------------------------------------

    def steer(self, direction: np.ndarray, *, slow: bool) -> None:
        """Move the hand along ``direction``, (3,) in world axes; length 1 is full speed, longer ones are scaled to 1.

        A key that is still held from the previous episode does not start the next one.

        Raises:
            ArrayError: The direction is not three finite numbers.
        """
        direction = as_array(direction, "The direction", (3,))
        length = float(np.linalg.norm(direction))
        self._is_released = self._is_released or not length
        if not self._is_released:
            return
        self._move = direction / max(1.0, length) * self.config.teleop.speed * (SLOW if slow else 1.0)
        if length:
            self._register_input()

    def release(self) -> None:
        """Stop, as when the operator leaves: the hand stays where it is, and time stops until the next input."""
        self._move = np.zeros(3)
        self._is_released = True
        self._idle_steps = self._settle_steps

    def toggle_gripper(self) -> None:
        """Open the gripper if it is closed, and close it if it is open."""
        self.gripper = -self.gripper
        self._register_input()

    def _register_input(self) -> None:
        self._idle_steps = 0
        if self.phase == "ready":
            self.phase = "running"

    def tick(self) -> bool:
        """Advance by one control period; return True if a step was made."""
        if self.phase != "running" or self.waits:
            return False
        actions = np.append(self._move, self.gripper).astype(np.float32)[None]
        self.recorder.plan(actions, actions)
        step_batch = self.simulator.step_chunk(actions, rewards=self.config.rewards, physics=True)
        self.recorder.record(step_batch)
        self.succeeds_now = bool(step_batch.success[-1])
        self._idle_steps = 0 if self._move.any() else self._idle_steps + 1
        if not self.recorder.steps_left(self.config.steps_after_success):
            self.phase = "succeeded" if self.succeeded else "out of steps"
        return True

    @property
    def waits(self) -> bool:
        """True while time stops until the next input; after a success it runs to the end of the episode."""
        return self._idle_steps >= self._settle_steps and not self.succeeded

    # -- end of an episode -------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Write the episode to disk; can be called again after an error.

        Raises:
            DatasetError: The episode has not succeeded.
            OSError: The episode could not be written; it is still in memory.
        """
        if not self.succeeded:
            raise DatasetError("The episode has not succeeded yet: only successes are kept.")
        episode = self.recorder.episode()
        attempt = AttemptRecord(init_state=self.init_state, num_steps=len(episode), kept=True)
        if self._store is None:
            self._store = EpisodeStore.create(self.path, make_dataset_info(self.config, None), episode)
        self._store.append([episode], [*self._unstored, attempt])
        self._unstored.clear()
        self._attempts.append(attempt)
        self.num_kept += 1
        self._next_init_state()

    def restart(self) -> None:
        """Restart from the same initial state; an attempt with at least one step is recorded as failed."""
        if self.num_steps:
            self._discard()
        self._begin_attempt()

    def skip(self) -> None:
        """Continue with the next initial state; this one is recorded as not demonstrated, a hole in the coverage."""
        self._discard()
        self._next_init_state()

    def _discard(self) -> None:
        attempt = AttemptRecord(init_state=self.init_state, num_steps=self.num_steps, kept=False)
        self._attempts.append(attempt)
        self._unstored.append(attempt)
        self.num_discarded += 1
        if self._store:  # which the first success creates
            with suppress(OSError):  # reported by the next keep, which stores these attempts too
                self._store.append([], self._unstored)
                self._unstored.clear()

    def _next_init_state(self) -> None:
        self._init_state_index += 1
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self.release()
        self._is_released = False
        self.gripper = OPEN
        self.attempt += 1
        self.recorder = EpisodeRecorder(
            self._init_states[self._init_state_index % len(self._init_states)],
            attempt=len(self._attempts),
            source=f"teleop:{self.config.teleop.operator}",
        )
        self.recorder.begin(self.simulator.reset(self.recorder.init_state), self.simulator.distance)
        self.succeeds_now = False
        self.phase = "ready" if self.num_kept < self.config.n else "done"

    def finish(self) -> EpisodeStore | None:
        """Mark the dataset as finished if it is complete; return it, or None if no episode was kept."""
        if self._store and self.num_kept >= self.config.n:
            self._store.finish()
            finish_output(self.path)
        return self._store
