"""Pictures of a dataset's coverage: the demonstrated starts on top of those the policy will be evaluated from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from act_kit.diversity.measure import is_inside
from act_kit.diversity.reference import reference_init_states
from act_kit.diversity.result import ScalingPoint
from act_kit.pages import BLUE, GREY, ORANGE, PALETTE, RED, new_maps
from act_kit.sim.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_SHOWN = 400
_MOST_SHOWN = 1000
_NUM_BINS = 10
_LONGEST = 24
"""Letters of a source's name that the legend has room for."""


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


def coverage_figure(
    task: Task,
    demonstrated: np.ndarray,
    failed: np.ndarray | None = None,
    *,
    against: np.ndarray | None = None,
    pairs: Sequence[tuple[int, int | None]] | None = None,
    sources: Sequence[str] = (),
) -> Figure:
    """Draw demonstrated starts (N, D) and failed attempts over those evaluated from, one map per pair of dimensions.

    Those evaluated from are fresh ones, unless they are given (``against``). Demonstrated starts that the reset law
    never gives are marked, at the rim if they lie outside its box. With ``sources`` (N), who demonstrated, each has a
    colour.
    """
    pairs = panels(task) if pairs is None else pairs
    figure = new_maps(len(pairs))
    evaluated = reference_init_states(task, _NUM_SHOWN) if against is None else against[:_NUM_SHOWN]
    drawn = np.flatnonzero(np.isfinite(demonstrated).all(axis=1))
    drawn = drawn[:: -(-len(drawn) // _MOST_SHOWN) or 1]
    finite, who = demonstrated[drawn], np.array(sources or ["demonstrated"] * len(demonstrated))[drawn]
    inside = is_inside(task, finite)
    colors = _colors(sources or ["demonstrated"])
    outside = np.clip(finite[~inside], task.low, task.high)
    for axes, pair in zip(figure.axes, pairs, strict=True):
        draw_axes(axes, task, pair)
        axes.scatter(*place(evaluated, pair), s=9, color=GREY, linewidths=0, label="evaluated from")
        if failed is not None and len(failed):
            axes.scatter(*place(failed, pair), s=30, color=RED, marker="x", label="attempts not kept")
        for source, color in colors.items():
            theirs = finite[inside & (who == source)]
            axes.scatter(*place(theirs, pair), s=22, color=color, linewidths=0, alpha=0.85, label=source[:_LONGEST])
        if len(outside):
            axes.scatter(*place(outside, pair), s=26, color=ORANGE, marker="s", linewidths=0, label="never a start")
    columns = 2 if len(colors) == 1 else 1  # names may be long
    labels = axes.get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _colors(sources: Sequence[str]) -> dict[str, str]:
    """Give each source a colour; those beyond the palette share the last."""
    names = list(dict.fromkeys(sources))
    return {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(names)}


def distribution_figure(task: Task, dim: int, demonstrated: np.ndarray, against: np.ndarray | None) -> Figure:
    """Draw how often each tenth of one dimension's interval was demonstrated, over how often it is evaluated from."""
    figure = new_maps(1)
    (axes,) = figure.axes
    edges = np.linspace(task.low[dim], task.high[dim], _NUM_BINS + 1)
    evaluated = reference_init_states(task) if against is None else against
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for init_states, color, part in ((evaluated, GREY, 0.95), (demonstrated, BLUE, 0.5)):
        shares = np.histogram(init_states[np.isfinite(init_states[:, dim]), dim], edges)[0] / len(init_states)
        axes.bar(middles, 100 * shares, part * width, color=color)
    axes.set_xlabel(f"{task.dim_name(dim)} (m)")
    axes.set_ylabel("% of starts")
    axes.tick_params(labelsize=8)
    return figure


def scaling_figure(scaling: Sequence[ScalingPoint], num: int) -> Figure:
    """Draw how near a start is to the nearest demonstration, with fewer and with more of them."""
    figure = new_maps(1)
    (axes,) = figure.axes
    nums = [point.num for point in scaling]
    axes.plot(nums, [100 * point.nearest_random for point in scaling], color=GREY, linewidth=5, label="random starts")
    axes.plot(nums, [100 * point.nearest for point in scaling], color=BLUE, marker="o", label="these, and more")
    axes.axvline(num, color=ORANGE, linestyle=":", label="as many as now")
    axes.set_xscale("log", base=2)
    axes.set_xticks(nums, [str(num) for num in nums])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("demonstrations")
    axes.set_ylabel("distance to the nearest\n(% of the box's width)")
    axes.legend(frameon=False, fontsize=8)
    axes.tick_params(labelsize=8)
    return figure
