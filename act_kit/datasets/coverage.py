"""The picture of a dataset's coverage: the demonstrated starts on top of those the policy will be evaluated from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from act_kit.datasets.diversity import reference_starts
from act_kit.pages import BLUE, GREY, RED, new_maps
from act_kit.sim.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_SHOWN = 400


def panels(task: Task) -> list[tuple[int, int | None]]:
    """Pair the informative dimensions for 2-D maps: object x-y, goal x-y, the rest; a single one stands alone."""
    dims = [int(dim) for dim in task.informative]
    pairs: list[tuple[int, int | None]] = []
    for part in ([d for d in dims if d < 3], [d for d in dims if d >= 3]):
        for i in range(0, len(part) - 1, 2):
            pairs.append((part[i], part[i + 1]))
        if len(part) % 2:
            first = part[0] if len(part) > 1 else None
            pairs.append((part[-1], None) if first is None else (first, part[-1]))
    return pairs


def draw_axes(axes: Axes, task: Task, pair: tuple[int, int | None]) -> None:
    """Label the axes of one map and set them to the reset box."""
    x, y = pair
    for dim, limits, label in ((x, axes.set_xlim, axes.set_xlabel), (y, axes.set_ylim, axes.set_ylabel)):
        if dim is not None:
            margin = 0.06 * task.width[dim]
            limits(task.low[dim] - margin, task.high[dim] + margin)
            label(f"{task.dim_name(dim)} (m)")
    if y is None:
        axes.set_ylim(-0.5, 1.5)
        axes.set_yticks([])
    axes.tick_params(labelsize=8)


def place(rand_vecs: np.ndarray, pair: tuple[int, int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of starts (N, D) on a map; in one dimension they are spread out to be seen."""
    x, y = pair
    spread = np.random.default_rng(0).uniform(0, 1, len(rand_vecs))
    return rand_vecs[:, x], spread if y is None else rand_vecs[:, y]


def coverage_figure(task: Task, demonstrated: np.ndarray, failed: np.ndarray | None = None) -> Figure:
    """Draw demonstrated starts (N, D) and failed attempts over fresh ones, one map per pair of dimensions."""
    pairs = panels(task)
    figure = new_maps(len(pairs))
    for axes, pair in zip(figure.axes, pairs, strict=True):
        draw_axes(axes, task, pair)
        fresh = reference_starts(task.name, _NUM_SHOWN)
        axes.scatter(*place(fresh, pair), s=9, color=GREY, linewidths=0, label="evaluated from")
        if failed is not None and len(failed):
            axes.scatter(*place(failed, pair), s=30, color=RED, marker="x", label="attempts that failed")
        axes.scatter(*place(demonstrated, pair), s=22, color=BLUE, linewidths=0, alpha=0.85, label="demonstrated")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure
