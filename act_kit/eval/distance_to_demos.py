"""Distances of initial states to the demonstrated ones.

They tell generalization from memorization: success from a near copy of a demonstrated state may be memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from scipy.stats import beta

from act_kit.sim.initial_states import InitialState, stack
from act_kit.sim.tasks import get_task
from act_kit.statistics import Rate

_MAX_BINS = 5
_MIN_EPISODES_PER_BIN = 10

_COPY_P = 1e-6
"""Initial states count as copies if the probability that independent draws come as near is below this."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Success rate of the episodes in a range of distances.

    Attributes:
        low, high: Distance of their initial states to the nearest demonstrated one, in box widths.
        rate: Success rate.
    """

    low: float
    high: float
    rate: Rate


def distances_to_nearest_demo(task: str, init_states: Sequence[InitialState], demonstrated: np.ndarray) -> np.ndarray:
    """Return the distance of each initial state to the nearest demonstrated one (N, D), in box widths; float64 (M,)."""
    spec = get_task(task)
    dims = spec.informative
    seen, queried = demonstrated[:, dims] / spec.width[dims], stack(init_states)[:, dims] / spec.width[dims]
    distances: np.ndarray = np.linalg.norm(seen - queried[:, None], axis=2).min(axis=1)
    return distances


def near_copies(task: str, rand_vecs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which initial states (N, D) lie nearer to some of ``others`` (M, D) than chance allows; bool (N,).

    A draw from the box comes within r box widths (maximum norm) of one of M states in d informative dimensions with a
    probability of at most 2 M (2 r)^d; the factor 2 covers the part of the box that the initial-state distribution
    rejects. In six dimensions, one state within a millimeter is recognized as a copy; in one dimension, only many
    states within a micrometer are. Under independence, the kth smallest of N such probabilities is at least
    beta(k, N - k + 1) distributed.
    """
    is_copy = np.zeros(len(rand_vecs), dtype=bool)
    if not len(others):
        return is_copy
    spec = get_task(task)
    dims = spec.informative
    seen, queried = others[:, dims] / spec.width[dims], rand_vecs[:, dims] / spec.width[dims]
    nearest = cdist(queried, seen, "chebyshev").min(axis=1)
    p_values = np.minimum(1.0, 2 * len(seen) * (2 * nearest) ** len(dims))
    order = np.argsort(p_values)
    ranks = np.arange(1, len(order) + 1)
    p_of_rank = beta.cdf(p_values[order], ranks, len(order) - ranks + 1)
    num = len(order) - int(np.argmin(p_of_rank[::-1]))
    if p_of_rank[num - 1] * len(order) < _COPY_P:
        is_copy[order[:num]] = True
    return is_copy


def divide(distances: ArrayLike, succeeded: ArrayLike) -> list[Bin]:
    """Divide N episodes by distance, float (N,), into up to five bins of about equal size; no bins for N = 0."""
    values, is_success = np.asarray(distances), np.asarray(succeeded)
    if not len(values):
        return []
    num_bins = min(_MAX_BINS, max(1, len(values) // _MIN_EPISODES_PER_BIN))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1]))
    bin_index = np.digitize(values, edges)
    bins: list[Bin] = []
    for i in np.unique(bin_index):
        inside = bin_index == i
        rate = Rate(int(is_success[inside].sum()), int(inside.sum()))
        bins.append(Bin(low=float(values[inside].min()), high=float(values[inside].max()), rate=rate))
    return bins
