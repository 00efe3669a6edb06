"""Figures of a dataset's coverage: the demonstrated initial states over the evaluated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from act_kit.diversity.measure import is_inside
from act_kit.diversity.reference import reference_init_states
from act_kit.diversity.result import ScalingPoint
from act_kit.pages import BLUE, GRAY, ORANGE, PALETTE, RED, new_maps
from act_kit.sim.tasks import Task, map_planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_EVALUATED_SHOWN = 400
_MAX_DEMONSTRATED_SHOWN = 1000
_NUM_BINS = 10
_MAX_LABEL_LENGTH = 24
"""Number of characters of a source in the legend."""


def draw_axes(axes: Axes, task: Task, pair: tuple[int, int | None]) -> None:
    """Label the axes of a map and limit them to the reset box."""
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
    """Return the map coordinates of initial states (N, D); with one dimension, the second coordinate is random."""
    x, y = pair
    jitter = np.random.default_rng(0).uniform(0, 1, len(rand_vecs))
    return rand_vecs[:, x], jitter if y is None else rand_vecs[:, y]


def coverage_figure(
    task: Task,
    demonstrated: np.ndarray,
    failed: np.ndarray | None = None,
    *,
    against: np.ndarray | None = None,
    pairs: Sequence[tuple[int, int | None]] | None = None,
    sources: Sequence[str] = (),
) -> Figure:
    """Draw demonstrated initial states (N, D) and failed attempts over the evaluated ones.

    Each pair of dimensions has its own map. The evaluated initial states are new ones unless ``against`` is given.
    Demonstrated initial states outside the task's distribution are marked, at the rim if they lie outside the box.
    With ``sources`` (N), each source has its own color.
    """
    pairs = map_planes(task) if pairs is None else pairs
    figure = new_maps(len(pairs))
    evaluated = reference_init_states(task, _NUM_EVALUATED_SHOWN) if against is None else against[:_NUM_EVALUATED_SHOWN]
    drawn = np.flatnonzero(np.isfinite(demonstrated).all(axis=1))
    drawn = drawn[:: -(-len(drawn) // _MAX_DEMONSTRATED_SHOWN) or 1]
    finite = demonstrated[drawn]
    source_N = np.array(sources or ["demonstrated"] * len(demonstrated))[drawn]
    inside = is_inside(task, finite)
    colors = _colors(sources or ["demonstrated"])
    outside = np.clip(finite[~inside], task.low, task.high)
    for axes, pair in zip(figure.axes, pairs, strict=True):
        draw_axes(axes, task, pair)
        axes.scatter(*place(evaluated, pair), s=9, color=GRAY, linewidths=0, label="evaluated")
        if failed is not None and len(failed):
            axes.scatter(*place(failed, pair), s=30, color=RED, marker="x", label="failed attempts")
        for source, color in colors.items():
            own = finite[inside & (source_N == source)]
            axes.scatter(
                *place(own, pair), s=22, color=color, linewidths=0, alpha=0.85, label=source[:_MAX_LABEL_LENGTH]
            )
        if len(outside):
            axes.scatter(
                *place(outside, pair), s=26, color=ORANGE, marker="s", linewidths=0, label="out of distribution"
            )
    columns = 2 if len(colors) == 1 else 1  # names of sources may be long
    labels = axes.get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _colors(sources: Sequence[str]) -> dict[str, str]:
    """Return the color of each source; sources beyond the palette share the last color."""
    names = list(dict.fromkeys(sources))
    return {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(names)}


def distribution_figure(task: Task, dim: int, demonstrated: np.ndarray, against: np.ndarray | None) -> Figure:
    """Draw histograms of one dimension of the demonstrated and the evaluated initial states."""
    figure = new_maps(1)
    (axes,) = figure.axes
    edges = np.linspace(task.low[dim], task.high[dim], _NUM_BINS + 1)
    evaluated = reference_init_states(task) if against is None else against
    centers, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for init_states, color, bar_width in ((evaluated, GRAY, 0.95), (demonstrated, BLUE, 0.5)):
        shares = np.histogram(init_states[np.isfinite(init_states[:, dim]), dim], edges)[0] / len(init_states)
        axes.bar(centers, 100 * shares, bar_width * width, color=color)
    axes.set_xlabel(f"{task.dim_name(dim)} (m)")
    axes.set_ylabel("% of initial states")
    axes.tick_params(labelsize=8)
    return figure


def scaling_figure(scaling: Sequence[ScalingPoint], num: int) -> Figure:
    """Draw the distance to the nearest demonstration over the number of demonstrations."""
    figure = new_maps(1)
    (axes,) = figure.axes
    nums = [point.num for point in scaling]
    axes.plot(
        nums, [100 * point.nearest_random for point in scaling], color=GRAY, linewidth=5, label="random initial states"
    )
    axes.plot(nums, [100 * point.nearest for point in scaling], color=BLUE, marker="o", label="this dataset")
    axes.axvline(num, color=ORANGE, linestyle=":", label="current size")
    axes.set_xscale("log", base=2)
    axes.set_xticks(nums, [str(num) for num in nums])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("demonstrations")
    axes.set_ylabel("distance to the nearest\n(% of the box width)")
    axes.legend(frameon=False, fontsize=8)
    axes.tick_params(labelsize=8)
    return figure
