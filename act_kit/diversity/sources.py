"""Share of each source (demonstrator) in a dataset and in its coverage of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from act_kit.diversity.reference import count_distinct, distance_to_nearest, reference_init_states
from act_kit.sim.initial_states import SAME_INIT_STATE_M, scale
from act_kit.sim.tasks import Task


@dataclass(frozen=True, kw_only=True)
class SourceShare:
    """One source's part of a dataset.

    Attributes:
        source: Demonstrator.
        num, num_distinct: Number of episodes and of their distinct initial states.
        num_succeeded: Number of episodes with a successful step; DAgger episodes, in which a policy acts and the expert
            labels, may have none.
        nearest: Share of the evaluated initial states whose nearest demonstration is from this source; equally near
            sources all count. None without a finite initial state.
    """

    source: str
    num: int
    num_distinct: int
    num_succeeded: int
    nearest: float | None


def measure_sources(
    task: Task, rand_vecs: np.ndarray, sources: Sequence[str], succeeded: np.ndarray, against: np.ndarray | None = None
) -> list[SourceShare]:
    """Measure the share of each source of initial states (N, 3 or 6).

    Distances are measured from the task's initial-state distribution, or from the initial states ``against``.
    """
    y = scale(task, reference_init_states(task) if against is None else against)
    is_finite, source_N = np.isfinite(rand_vecs).all(axis=1), np.array(sources)
    names = list(dict.fromkeys(sources))
    own = [rand_vecs[is_finite & (source_N == name)] for name in names]
    distances = np.full((len(names), len(y)), np.inf)
    for row, init_states in zip(distances, own, strict=True):
        if len(init_states):
            row[:] = distance_to_nearest(scale(task, init_states), y)
    nearest = (distances <= distances.min(axis=0) + SAME_INIT_STATE_M).mean(axis=1)
    shares = []
    for i, name in enumerate(names):
        share = SourceShare(
            source=name,
            num=int((source_N == name).sum()),
            num_distinct=count_distinct(own[i]),
            num_succeeded=int(succeeded[source_N == name].sum()),
            nearest=float(nearest[i]) if len(own[i]) else None,
        )
        shares.append(share)
    return shares
