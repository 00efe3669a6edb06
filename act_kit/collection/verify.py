"""Verification of a dataset: its actions, from its initial states, must lead to its recorded states.

The replay is bit-exact on the processor that recorded the dataset; another one may round norms differently. It is the
cheapest proof that initial states, actions and simulator are the same as when the dataset was recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.parallel import Executor
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.resimulation import RESIMULATED, first_difference, resimulate
from act_kit.sim.simulator import Simulator
from act_kit.sim.threads import cache_per_thread


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """Result of the replay of one episode.

    Attributes:
        index: Index of the episode.
        first_difference: First step at which a recorded field differs by more than rounding; None if there is none.
        field: Name of the field that differs there.
        rounded: Largest difference of each field that differs by rounding only.
    """

    index: int
    first_difference: int | None = None
    field: str = ""
    rounded: dict[str, float] = dataclasses.field(default_factory=dict)


_simulator = cache_per_thread(Simulator, 1)


def replay_episode(index: int, episode: Episode) -> ReplayResult:
    """Replay one episode and compare every step with the recorded one."""
    replayed_episode = resimulate(_simulator(episode.init_state.task), episode, episode.executed_action)
    num = len(replayed_episode)
    rounded: dict[str, float] = {}
    for name in RESIMULATED:
        if name not in episode.steps:
            continue
        recorded, replayed = episode.steps[name][:num], replayed_episode.steps[name]
        difference = first_difference(recorded, replayed)
        if difference is not None:
            return ReplayResult(index=index, first_difference=difference, field=name)
        if not np.array_equal(recorded, replayed):
            rounded[name] = float(np.abs(recorded - replayed).max())
    if num < len(episode):
        return ReplayResult(index=index, first_difference=num, field="length")
    return ReplayResult(index=index, rounded=rounded)


def replay(
    store: EpisodeStore, *, executor: Executor, on_progress: Callable[[int], None] = lambda num: None
) -> list[ReplayResult]:
    """Replay every episode of a dataset; return the results in order."""
    results: list[ReplayResult] = []
    for result in executor.map(replay_episode, enumerate(store.episodes())):
        results.append(result)
        on_progress(len(results))
    return results
