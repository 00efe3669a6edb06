"""How success depends on the distance to the nearest demonstration: does a policy generalise, or remember?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from act_kit.sim.starts import Start
from act_kit.sim.tasks import get_task
from act_kit.statistics import Rate

_BINS = 5
_PER_BIN = 10
"""Fewer episodes than this would say little, so there are fewer bins."""


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


def nearest_demonstrations(task: str, starts: Sequence[Start], demonstrated: np.ndarray) -> np.ndarray:
    """Return each start's distance to the nearest demonstrated one (N, D), in box widths; float64 (M,)."""
    spec = get_task(task)
    dims = spec.informative
    seen = demonstrated[:, dims] / spec.width[dims]
    return np.array([np.linalg.norm(seen - s.array[dims] / spec.width[dims], axis=1).min() for s in starts])


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
