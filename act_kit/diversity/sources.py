"""Who demonstrated how much, and what of the task that covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from act_kit.diversity.reference import count_distinct, reference_init_states, scale
from act_kit.sim.initial_states import SAME_INIT_STATE_M
from act_kit.sim.tasks import Task


@dataclass(frozen=True, kw_only=True)
class SourceShare:
    """One source's part of a dataset.

    Attributes:
        source: Who demonstrated.
        num, num_distinct: Episodes, and the distinct starts among them.
        num_succeeded: Episodes with a step that succeeds; where a policy acted and the expert labelled, some have none.
        nearest: Of the starts that the policy will be evaluated from, those whose nearest demonstration is this
            source's; where several demonstrated the same start, it is each one's. None without a finite start.
    """

    source: str
    num: int
    num_distinct: int
    num_succeeded: int
    nearest: float | None


def measure_sources(
    task: Task, rand_vecs: np.ndarray, sources: Sequence[str], succeeded: np.ndarray, against: np.ndarray | None = None
) -> list[SourceShare]:
    """Measure each of the sources of N starts (N, 3 or 6), against the reset law or the starts ``against``."""
    y = scale(task, reference_init_states(task) if against is None else against)
    is_finite, who = np.isfinite(rand_vecs).all(axis=1), np.array(sources)
    names = list(dict.fromkeys(sources))
    distances = np.full((len(names), len(y)), np.inf)
    for distance, name in zip(distances, names, strict=True):
        theirs = rand_vecs[is_finite & (who == name)]
        if len(theirs):
            distance[:] = cKDTree(scale(task, theirs)).query(y)[0]
    least = distances.min(axis=0)
    return [
        SourceShare(
            source=name,
            num=int((who == name).sum()),
            num_distinct=count_distinct(rand_vecs[is_finite & (who == name)]),
            num_succeeded=int(succeeded[who == name].sum()),
            nearest=float((distance <= least + SAME_INIT_STATE_M).mean()) if np.isfinite(distance).all() else None,
        )
        for name, distance in zip(names, distances, strict=True)
    ]
