"""The map of the starts demonstrated so far, and of the holes they leave, as what a page can draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from act_kit.diversity.reference import draw, reference_init_states, scale
from act_kit.reports.coverage import panels
from act_kit.sim.tasks import Task

_NUM_SHOWN = 300
_HOLE = 2.0
"""A start is in a hole where its nearest demonstration is so many times as far as is usual at the end ..."""
_ENOUGH = 50
"""... of at least so many: fewer leave holes everywhere."""


class CoverageMap:
    """Starts over those that a policy will be evaluated from, and which of these are still far from all of them."""

    def __init__(self, task: Task, num_wanted: int) -> None:
        self._task = task
        self._reference = reference_init_states(task, _NUM_SHOWN)
        usual = self._nearest(draw(task, max(num_wanted, _ENOUGH), seed=0)).mean()
        self._far = _HOLE * float(usual)

    def _nearest(self, init_states: np.ndarray) -> np.ndarray:
        """Return how far each start that is shown is from the nearest of some (N, D), in widths of the box."""
        distance: np.ndarray = cKDTree(scale(self._task, init_states)).query(scale(self._task, self._reference))[0]
        return distance

    def of(self, kept: np.ndarray, discarded: np.ndarray, now: np.ndarray) -> dict[str, Any]:
        """Return the map of starts (N, D): panels with their axes, and points with their coordinates in them."""
        is_hole = self._nearest(kept) > self._far if len(kept) else np.ones(len(self._reference), dtype=bool)
        points = {
            "covered": self._reference[~is_hole], "holes": self._reference[is_hole], "discarded": discarded,
            "kept": kept, "now": now[None],
        }  # fmt: skip
        shown = [[dim for dim in pair if dim is not None] for pair in panels(self._task)]
        return {
            "holes": float(is_hole.mean()),
            "panels": [
                {
                    "axes": [self._axis(dim) for dim in dims],
                    "points": {name: rows[:, dims].tolist() for name, rows in points.items()},
                }
                for dims in shown
            ],
        }

    def _axis(self, dim: int) -> dict[str, Any]:
        return {"name": self._task.dim_name(dim), "low": self._task.low[dim], "high": self._task.high[dim]}
