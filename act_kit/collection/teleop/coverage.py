"""Coverage map of the demonstrated initial states, and of the regions they leave uncovered, as JSON for a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from act_kit.diversity.reference import distance_to_nearest, draw, reference_init_states
from act_kit.sim.initial_states import scale
from act_kit.sim.tasks import Task, map_planes

_NUM_SHOWN = 300
"""Number of reference initial states shown."""
_HOLE_FACTOR = 2.0
"""A reference initial state is in a hole if its nearest demonstration is more than this many times as far as the mean
distance in a complete dataset."""
_MIN_DEMONSTRATIONS = 50
"""Minimum size of that complete dataset: smaller ones have holes everywhere."""


class CoverageMap:
    """Map of the demonstrated initial states over reference ones, as used in evaluation, and of the uncovered ones."""

    def __init__(self, task: Task, num_wanted: int) -> None:
        self._task = task
        self._reference = reference_init_states(task, _NUM_SHOWN)
        complete = draw(task, max(num_wanted, _MIN_DEMONSTRATIONS), seed=0)
        self._hole_distance = _HOLE_FACTOR * float(self._nearest(complete).mean())

    def _nearest(self, init_states: np.ndarray) -> np.ndarray:
        """Return the distance of each reference initial state to the nearest of some others (N, D), in box widths."""
        return distance_to_nearest(scale(self._task, init_states), scale(self._task, self._reference))

    def compute(self, kept: np.ndarray, discarded: np.ndarray, now: np.ndarray) -> dict[str, Any]:
        """Return the panels of the map, with axes and coordinates, and the share of holes.

        ``kept`` and ``discarded`` are initial states (N, D), ``now`` is the current one (D,).
        """
        is_hole = self._nearest(kept) > self._hole_distance if len(kept) else np.ones(len(self._reference), dtype=bool)
        points = {
            "covered": self._reference[~is_hole],
            "holes": self._reference[is_hole],
            "discarded": discarded,
            "kept": kept,
            "now": now[None],
        }
        shown: list[dict[str, Any]] = []
        for pair in map_planes(self._task):
            dims = [dim for dim in pair if dim is not None]
            coordinates = {name: init_states[:, dims].tolist() for name, init_states in points.items()}
            shown.append({"axes": [self._axis(dim) for dim in dims], "points": coordinates})
        return {"holes": float(is_hole.mean()), "panels": shown}

    def _axis(self, dim: int) -> dict[str, Any]:
        return {"name": self._task.dim_name(dim), "low": self._task.low[dim], "high": self._task.high[dim]}
