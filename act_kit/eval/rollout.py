"""Rolling out: whoever acts, from given starts, in many environments at once.

An outcome depends on its start and on who acted, never on the number of processes or on what ran beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from act_kit.eval.actors import Actor
from act_kit.sim.simulator import Segment
from act_kit.sim.starts import Start
from act_kit.sim.tasks import HORIZON
from act_kit.sim.vector import Crash, VectorSimulator

NUM_ROWS = 16
"""Environments that run at the same time; each holds 26 MB."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one episode of T steps went.

    Attributes:
        start: Where it began.
        success: bool (T,), at each step.
        distance: float64 (T + 1,), before the first action and after each; metres (radians for lever-pull).
        actions: float32 (T, 4), as carried out.
        query_steps: int64 (Q,), the steps before which the actor was asked.
        query_states: float64 (Q, 39), what it saw.
        clip_fraction: Fraction of the numbers it asked for that lay outside [-1, 1].
        crash: Why the simulation broke down, or None. A crashed episode has failed.
    """

    start: Start
    success: np.ndarray
    distance: np.ndarray
    actions: np.ndarray
    query_steps: np.ndarray
    query_states: np.ndarray
    clip_fraction: float
    crash: str | None = None

    def __len__(self) -> int:
        return len(self.success)

    @property
    def success_once(self) -> bool:
        """Whether any step succeeded: the benchmark's definition."""
        return self.crash is None and bool(self.success.any())

    @property
    def success_at_end(self) -> bool:
        """Whether the last step succeeded."""
        return self.crash is None and bool(len(self) and self.success[-1])

    @property
    def success_step(self) -> int | None:
        """The first step that succeeded."""
        return int(np.argmax(self.success)) if self.success_once else None


@dataclass
class _Recording:
    """An episode under way."""

    index: int
    start: Start
    state: np.ndarray
    distance: list[np.ndarray]
    success: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    query_states: list[np.ndarray] = field(default_factory=list)
    query_steps: list[int] = field(default_factory=list)
    num_steps: int = 0
    num_clipped: int = 0
    succeeded: bool = False
    crash: str | None = None

    def add(self, planned: np.ndarray, segment: Segment | Crash) -> None:
        self.query_states.append(self.state)
        self.query_steps.append(self.num_steps)
        if isinstance(segment, Crash):
            self.crash = segment.message
            return
        carried_out = planned[: len(segment)]
        self.num_clipped += int((np.abs(carried_out) > 1.0).sum())
        self.actions.append(np.clip(carried_out, -1.0, 1.0).astype(np.float32))
        self.success.append(segment.success)
        self.distance.append(segment.distance)
        self.num_steps += len(segment)
        self.state = segment.state[-1]
        self.succeeded = self.succeeded or bool(segment.success.any())

    def outcome(self) -> Outcome:
        return Outcome(
            start=self.start,
            success=np.concatenate([np.zeros(0, dtype=bool), *self.success]),
            distance=np.concatenate(self.distance),
            actions=np.concatenate([np.zeros((0, 4), dtype=np.float32), *self.actions]),
            query_steps=np.array(self.query_steps),
            query_states=np.array(self.query_states),
            clip_fraction=self.num_clipped / max(1, 4 * self.num_steps),
            crash=self.crash,
        )


def rollout(
    simulators: VectorSimulator,
    actor: Actor,
    starts: Sequence[Start],
    *,
    stop_at_success: bool = False,
    on_episode: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Let ``actor`` run one episode from each start, to the horizon or (at the end of a chunk) to its first success."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(enumerate(starts))[::-1]
    live: dict[int, _Recording] = {}
    while live or waiting:
        begun = {row: waiting.pop() for row in range(simulators.num_rows) if row not in live and waiting}
        resets = simulators.reset({row: start for row, (_, start) in begun.items()})
        for row, (index, start) in begun.items():
            state, distance = resets[row]
            live[row] = _Recording(index, start, state, [np.array([distance])])
            actor.begin(row, start)
        rows = np.array(sorted(live))
        planned = actor.plan(np.stack([live[row].state for row in rows]), rows)
        segments = simulators.step(dict(zip(rows.tolist(), planned, strict=True)))
        for row, chunk in zip(rows.tolist(), planned, strict=True):
            recording = live[row]
            recording.add(chunk, segments[row])
            done = recording.num_steps == HORIZON or (stop_at_success and recording.succeeded)
            if done or recording.crash is not None:
                outcomes[recording.index] = live.pop(row).outcome()
                on_episode(outcomes[recording.index])
    return [outcomes[index] for index in range(len(starts))]
