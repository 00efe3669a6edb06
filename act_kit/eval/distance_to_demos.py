"""How near initial states are to demonstrated ones: does a policy generalise, or was it asked what it was shown?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import get_task
from act_kit.statistics import Rate

_BINS = 5
_PER_BIN = 10
"""Fewer episodes than this would say little, so there are fewer bins."""


_CHANCE = 1e-6
"""Initial states are called copies of others if independent draws came as near less often than this."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Episodes from about as far off.

    Attributes:
        low, high: Distance of their starts to the nearest demonstrated one, in box widths.
        rate: How many succeeded.
    """

    low: float
    high: float
    rate: Rate


def distances_to_nearest_demo(task: str, init_states: Sequence[InitialState], demonstrated: np.ndarray) -> np.ndarray:
    """Return each start's distance to the nearest demonstrated one (N, D), in box widths; float64 (M,)."""
    spec = get_task(task)
    dims = spec.informative
    seen = demonstrated[:, dims] / spec.width[dims]
    return np.array([np.linalg.norm(seen - s.array[dims] / spec.width[dims], axis=1).min() for s in init_states])


def near_copies(task: str, rand_vecs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which initial states (N, D) lie nearer to some of ``others`` (M, D) than chance allows; bool (N,).

    A draw from the box comes within r box widths (maximum norm) of one of M states in d informative dimensions with a
    probability of at most 2 M (2 r)^d; the 2 is for the part of the box that the reset law rejects. So in six
    dimensions a millimetre tells a copy, and in one dimension only many states within a micrometre do. Under
    independence the kth smallest of N such probabilities is at least beta(k, N - k + 1) distributed.
    """
    is_copy = np.zeros(len(rand_vecs), dtype=bool)
    if not len(others):
        return is_copy
    spec = get_task(task)
    dims = spec.informative
    seen, asked = others[:, dims] / spec.width[dims], rand_vecs[:, dims] / spec.width[dims]
    nearest = np.array([np.abs(seen - row).max(axis=1).min() for row in asked])
    chances = np.minimum(1.0, 2 * len(seen) * (2 * nearest) ** len(dims))
    order = np.argsort(chances)
    ranks = np.arange(1, len(order) + 1)
    together = beta.cdf(chances[order], ranks, len(order) - ranks + 1)
    num = len(order) - int(np.argmin(together[::-1]))
    if together[num - 1] * len(order) < _CHANCE:
        is_copy[order[:num]] = True
    return is_copy


def divide(distances: Sequence[float], succeeded: Sequence[bool]) -> list[Bin]:
    """Divide episodes by distance into up to five bins of about as many each."""
    order = np.array(distances)
    num_bins = min(_BINS, max(1, len(order) // _PER_BIN))
    inner = np.unique(np.quantile(order, np.linspace(0, 1, num_bins + 1)[1:-1]))
    of_bin = np.digitize(order, inner)
    won = np.array(succeeded)
    return [
        Bin(
            low=float(order[of_bin == i].min()),
            high=float(order[of_bin == i].max()),
            rate=Rate(int(won[of_bin == i].sum()), int((of_bin == i).sum())),
        )
        for i in np.unique(of_bin)
    ]
