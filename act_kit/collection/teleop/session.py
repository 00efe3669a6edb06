"""Demonstrating by hand, without a page: the start it stands at, what is steered, what is kept and what is discarded.

Time passes only while somebody is there and steers: the clock starts with the first input, goes on for a second after
the last one, so that the arm and what it holds come to rest, and then waits. So a demonstration holds no pauses, which
a policy would imitate, and nobody runs out of steps while thinking.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from act_kit.arrays import as_array
from act_kit.collection.collect import describe
from act_kit.collection.recorder import Recorder
from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore, set_attributes
from act_kit.errors import DatasetError
from act_kit.files import finish_output, quoted
from act_kit.rollouts.episode import Attempt
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator

SLOW = 0.25
"""What is left of the speed with the key for slow."""

SETTLE_S = 1.0
"""How long time goes on after the last input."""

Phase = Literal["ready", "running", "succeeded", "out of steps", "done"]
"""Before the first input; demonstrating; over, and to be kept or not (twice); nothing left to demonstrate."""

OPEN, CLOSED = -1.0, 1.0


class Session:
    """One dataset being demonstrated by hand.

    Attributes:
        phase: Where the episode stands.
        attempt: Number of this attempt since the session began, which commands name so that a late one does no harm.
        gripper: What it is told, -1 (open) or 1 (closed).
        num_discarded: Attempts that were not kept.
        waits: Whether time stands still for want of input.
    """

    def __init__(self, config: CollectConfig, path: Path, simulator: Simulator, *, resume: bool = False) -> None:
        """Begin a dataset at ``path``, or go on with the one that is there, whoever demonstrated so far.

        Raises:
            DatasetError: The dataset to go on with is of another task, or has other starts.
        """
        self.config = config
        self.path = path
        self._store = _reopen(config, path) if resume and path.exists() else None
        self._attempts = self._store.attempts() if self._store else []
        self._unstored: list[Attempt] = []
        num_drawn = config.num_init_states or (config.n if config.init_distribution == "grid" else 4 * config.n + 100)
        # Not the starts that the scripted expert has with this seed: beside its demonstrations, these add to them.
        self._init_states = InitialStateDistribution(config.task, config.init_distribution).sample(
            num_drawn, seed=config.seed, stream="teleop"
        )
        self.num_kept = sum(attempt.kept for attempt in self._attempts)
        self.num_discarded = len(self._attempts) - self.num_kept
        # A start is done with when it was kept, discarded or left out.
        last = self._attempts[-1].init_state if self._attempts else None
        self._number = self._init_states.index(last) + 1 if last in self._init_states else 0
        self._recorder = Recorder(simulator, steps_after_success=config.steps_after_success, rewards=config.rewards)
        self._settle_steps = round(SETTLE_S * config.teleop.rate_hz)
        self.attempt = 0
        self.gripper = OPEN
        self.phase: Phase = "done"
        self._let_go = False
        self._begin()

    # -- what is to be seen ----------------------------------------------------------------------------------------

    @property
    def init_state(self) -> InitialState:
        """Where this episode begins."""
        return self._recorder.init_state

    @property
    def num_steps(self) -> int:
        """Steps of this episode so far."""
        return len(self._recorder)

    @property
    def steps_left(self) -> int:
        """Steps until this episode is over."""
        return self._recorder.steps_left

    @property
    def distance(self) -> float:
        """How far the task is from done."""
        return float(self._recorder.simulator.distance)

    @property
    def succeeds_now(self) -> bool:
        """Whether the last step succeeded."""
        return self._recorder.succeeds_now

    @property
    def succeeded(self) -> bool:
        """Whether a step of this episode succeeded."""
        return self._recorder.succeeded

    def physics(self) -> np.ndarray:
        """Return what a picture needs, float64 (P,)."""
        return self._recorder.simulator.physics()

    def init_states(self, *, kept: bool) -> np.ndarray:
        """Return the starts of all attempts that were kept, or of those that were not; float64 (N, D)."""
        rows = [attempt.init_state.rand_vec for attempt in self._attempts if attempt.kept == kept]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self._init_states[0].rand_vec))

    # -- steering --------------------------------------------------------------------------------------------------

    def steer(self, direction: np.ndarray, *, slow: bool) -> None:
        """Move the hand along ``direction``, (3,) in the world's axes, at most 1 long: 1 for the full speed.

        A key that is still held from the episode before does not begin the next one.

        Raises:
            ArrayError: It is something else.
        """
        direction = as_array(direction, "The direction", (3,))
        length = float(np.linalg.norm(direction))
        self._let_go = self._let_go or not length
        if not self._let_go:
            return
        self._move = direction / max(1.0, length) * self.config.teleop.speed * (SLOW if slow else 1.0)
        if length:
            self._touch()

    def release(self) -> None:
        """Let go, as who leaves does: the hand is to stay where it is, and time stands still until the next input."""
        self._move = np.zeros(3)
        self._let_go = True
        self._idle_steps = self._settle_steps

    def toggle_gripper(self) -> None:
        """Open the gripper if it is closed, and close it if it is open."""
        self.gripper = -self.gripper
        self._touch()

    def _touch(self) -> None:
        self._idle_steps = 0
        if self.phase == "ready":
            self.phase = "running"

    def tick(self) -> bool:
        """Let one control period pass; return whether a step was made."""
        if self.phase != "running" or self.waits:
            return False
        action = np.append(self._move, self.gripper).astype(np.float32)
        self._recorder.step(action, action)
        self._idle_steps = 0 if self._move.any() else self._idle_steps + 1
        if not self.steps_left:
            self.phase = "succeeded" if self.succeeded else "out of steps"
        return True

    @property
    def waits(self) -> bool:
        """Whether time stands still until the next input; after a success it runs to the episode's end."""
        return self._idle_steps >= self._settle_steps and not self.succeeded

    # -- what becomes of the episode ---------------------------------------------------------------------------------

    def keep(self) -> None:
        """Store the episode; it is on disk when this returns. Called again after an error, it goes on.

        Raises:
            DatasetError: It has not succeeded.
            OSError: It could not be written, and is still here.
        """
        if not self.succeeded:
            raise DatasetError("It has not succeeded yet: only successes are kept.")
        source = f"teleop:{self.config.teleop.operator}"
        episode = self._recorder.episode(attempt=len(self._attempts), source=source)
        attempt = Attempt(init_state=self.init_state, num_steps=self.num_steps, kept=True)
        if self._store is None:
            self._store = EpisodeStore.create(self.path, describe(self.config, None), episode)
        self._store.append([episode], [*self._unstored, attempt])
        self._unstored.clear()
        self._attempts.append(attempt)
        self.num_kept += 1
        self._next()

    def restart(self) -> None:
        """Begin again from the same start; what was done counts as an attempt that failed, if anything was."""
        if self.num_steps:
            self._discard()
        self._begin()

    def skip(self) -> None:
        """Go on to the next start. This one stays on record as one that was not demonstrated: it leaves a hole."""
        self._discard()
        self._next()

    def _discard(self) -> None:
        attempt = Attempt(init_state=self.init_state, num_steps=self.num_steps, kept=False)
        self._attempts.append(attempt)
        self._unstored.append(attempt)
        self.num_discarded += 1
        if self._store:  # before the first success there is nothing to store it beside
            with suppress(OSError):  # a full disk is told of by the next episode to keep, which stores these too
                self._store.append([], self._unstored)
                self._unstored.clear()

    def _next(self) -> None:
        self._number += 1
        self._begin()

    def _begin(self) -> None:
        self.release()
        self._let_go = False
        self.gripper = OPEN
        self.attempt += 1
        self._recorder.begin(self._init_states[self._number % len(self._init_states)])
        self.phase = "ready" if self.num_kept < self.config.n else "done"

    def finish(self) -> EpisodeStore | None:
        """Mark the dataset as finished, if it is; return it, or None if nothing was kept."""
        if self._store and self.num_kept >= self.config.n:
            self._store.finish()
            finish_output(self.path)
        return self._store


def _reopen(config: CollectConfig, path: Path) -> EpisodeStore:
    """Open a dataset to go on with: by anybody, to any number, but from the same starts in the same order."""
    store = EpisodeStore.open(path, writable=True)
    begun, asked = store.info, describe(config, None)
    for name in ("task", "demonstrator", "seed", "init_distribution", "versions", "steps_after_success"):
        was, wanted = getattr(begun, name), getattr(asked, name)
        if was != wanted:
            raise DatasetError(
                f"{path} was begun with {name} {was}; asked for was {wanted}. To go on with it: {begun.command} "
                f"--out {quoted(path)} --resume"
            )
    store.recover()
    set_attributes(store.group, {"num_wanted": config.n, "fingerprint": None})
    return EpisodeStore.open(path, writable=True)
