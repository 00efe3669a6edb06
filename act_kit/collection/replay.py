"""Replaying a dataset: its recorded actions, from its recorded starts, must lead to its recorded states to the bit.

It is the cheapest proof that starts, actions and the simulator mean the same now as when they were recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from act_kit.datasets.episode import Episode
from act_kit.datasets.store import EpisodeStore
from act_kit.executors import Executor
from act_kit.sim.simulator import Simulator
from act_kit.sim.threads import cache_per_thread


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How the replay of one episode went.

    Attributes:
        index: Of the episode.
        first_difference: The first step at which state, success or distance differ, or None.
        field: What differed there.
    """

    index: int
    first_difference: int | None
    field: str


_simulator = cache_per_thread(Simulator, 1)


def replay_episode(index: int, episode: Episode) -> Replay:
    """Replay one episode and compare every step to the bit."""
    simulator = _simulator(episode.start.task)
    state = simulator.reset(episode.start)
    segment = simulator.step_chunk(episode.executed_action, rewards=episode.reward is not None)
    replayed = {
        "state": np.concatenate([state[None], segment.state[:-1]]),
        "success": segment.success,
        "distance": segment.distance,
    }
    if segment.reward is not None:
        replayed["reward"] = segment.reward
    for name, values in replayed.items():
        recorded = getattr(episode, name)
        differs = (values != recorded).reshape(len(recorded), -1).any(axis=1)
        if differs.any():
            return Replay(index=index, first_difference=int(np.argmax(differs)), field=name)
    return Replay(index=index, first_difference=None, field="")


def replay(
    store: EpisodeStore, *, executor: Executor, on_progress: Callable[[int], None] = lambda num: None
) -> list[Replay]:
    """Replay every episode of a dataset."""
    results: list[Replay] = []
    for result in executor.map(replay_episode, enumerate(store.episodes())):
        results.append(result)
        on_progress(len(results))
    return results
