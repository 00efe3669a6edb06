"""Figures of initial states and success: circles are successes or demonstrations, crosses are failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from act_kit.diversity.measure import is_inside
from act_kit.diversity.reference import reference_init_states
from act_kit.diversity.result import ScalingPoint
from act_kit.eval.distance_to_demos import Bin
from act_kit.eval.results import Evaluation
from act_kit.pages import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, figure_text, new_figure
from act_kit.sim.initial_states import OOD_MARGIN, SAME_INIT_STATE_M, InitialStateDistribution
from act_kit.sim.tasks import Task, get_task, map_planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plane = tuple[int, int | None]
"""Dimensions of an initial state that are the axes of a map; a single dimension has no second one."""

_NUM_EVALUATED_SHOWN = 400
_MAX_DEMONSTRATED_SHOWN = 1000
_NUM_BINS = 10
_MAX_LABEL_LENGTH = 24
"""Number of characters of a source in the legend."""
_SOURCE_STYLES = ((BLUE, "o"), (PURPLE, "^"), (SKY, "D"), (GREEN, "v"), ("#000000", "P"))
"""Color and marker of each source; further sources share the last."""


def draw_plane(axes: Axes, task: Task, plane: Plane) -> None:
    """Label the axes of a map and limit them to the reset box."""
    x, y = plane
    for dim, limits, label in ((x, axes.set_xlim, axes.set_xlabel), (y, axes.set_ylim, axes.set_ylabel)):
        if dim is not None:
            margin = 0.06 * task.width[dim]
            limits(task.low[dim] - margin, task.high[dim] + margin)
            label(f"{task.dim_name(dim)} (m)")
    if y is None:
        axes.set_ylim(-0.5, 1.5)
        axes.set_yticks([])


def map_coordinates(rand_vecs: np.ndarray, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Return the map coordinates of initial states (N, D); with one dimension, the second coordinate is random."""
    x, y = plane
    jitter = np.random.default_rng(0).uniform(0, 1, len(rand_vecs))
    return rand_vecs[:, x], jitter if y is None else rand_vecs[:, y]


def add_legend(figure: Figure) -> None:
    """Put the labels of the first axes into a legend above the figure, two in a row."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8, handletextpad=0.4, borderpad=0.1
    )


def coverage_figures(
    task: Task,
    demonstrated: np.ndarray,
    failed: np.ndarray,
    *,
    against: np.ndarray | None = None,
    sources: Sequence[str] = (),
) -> list[Figure]:
    """Draw demonstrated initial states (N, D) and failed attempts over the evaluated ones, a figure per plane.

    The evaluated initial states are new ones unless ``against`` is given. Demonstrated initial states outside the
    task's distribution are marked, at the rim if they lie outside the box. With ``sources`` (N), each source has its
    own color and marker.
    """
    evaluated = reference_init_states(task, _NUM_EVALUATED_SHOWN) if against is None else against[:_NUM_EVALUATED_SHOWN]
    drawn = np.flatnonzero(np.isfinite(demonstrated).all(axis=1))
    drawn = drawn[:: -(-len(drawn) // _MAX_DEMONSTRATED_SHOWN) or 1]
    finite = demonstrated[drawn]
    source_N = np.array(sources or ["demonstrated"] * len(demonstrated))[drawn]
    names = list(dict.fromkeys(sources or ["demonstrated"]))
    inside = is_inside(task, finite)
    outside = np.clip(finite[~inside], task.low, task.high)
    figures = []
    for plane in map_planes(task):
        figure = new_figure()
        (axes,) = figure.axes
        draw_plane(axes, task, plane)
        axes.scatter(*map_coordinates(evaluated, plane), s=10, color=GRAY, linewidths=0, label="evaluated")
        for i, name in enumerate(names):
            color, marker = _SOURCE_STYLES[min(i, len(_SOURCE_STYLES) - 1)]
            points = map_coordinates(finite[inside & (source_N == name)], plane)
            label = figure_text(name, _MAX_LABEL_LENGTH)
            axes.scatter(*points, s=24, color=color, marker=marker, linewidths=0, alpha=0.85, label=label)
        if len(failed):
            axes.scatter(*map_coordinates(failed, plane), s=30, color=RED, marker="x", label="failed attempts")
        if len(outside):
            label = "out of distribution"
            axes.scatter(*map_coordinates(outside, plane), s=26, color=ORANGE, marker="s", linewidths=0, label=label)
        add_legend(figure)
        figures.append(figure)
    return figures


def distribution_figure(task: Task, dim: int, demonstrated: np.ndarray, against: np.ndarray | None) -> Figure:
    """Draw histograms of one dimension of the demonstrated and the evaluated initial states."""
    figure = new_figure()
    (axes,) = figure.axes
    edges = np.linspace(task.low[dim], task.high[dim], _NUM_BINS + 1)
    evaluated = reference_init_states(task) if against is None else against
    centers, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    histograms = (("evaluated", evaluated, GRAY, 0.95), ("demonstrated", demonstrated, BLUE, 0.5))
    for label, init_states, color, bar_width in histograms:
        shares = np.histogram(init_states[np.isfinite(init_states[:, dim]), dim], edges)[0] / len(init_states)
        axes.bar(centers, 100 * shares, bar_width * width, color=color, label=label)
    axes.set(xlabel=f"{task.dim_name(dim)} (m)", ylabel="initial states (%)")
    add_legend(figure)
    return figure


def scaling_figure(scaling: Sequence[ScalingPoint], num: int) -> Figure:
    """Draw the distance to the nearest demonstration over the number of demonstrations."""
    figure = new_figure()
    (axes,) = figure.axes
    points = np.array([(point.num, point.nearest_random, point.nearest) for point in scaling])
    nums, nearest_random, nearest = points[:, 0].astype(int), points[:, 1], points[:, 2]
    axes.plot(nums, 100 * nearest_random, color=GRAY, linewidth=5, label="random initial states")
    axes.plot(nums, 100 * nearest, color=BLUE, marker="o", label="this dataset")
    axes.axvline(num, color=ORANGE, linestyle=":", label="current size")
    axes.set_xscale("log", base=2)
    axes.set_xticks(nums, list(map(str, nums)))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="demonstrations", ylabel="distance to nearest (% of box width)")
    add_legend(figure)
    return figure


def draw_success(axes: Axes, evaluation: Evaluation, plane: Plane) -> None:
    """Draw successes and failures over the demonstrated initial states."""
    task = get_task(evaluation.task)
    rand_vecs, succeeded = evaluation.init_states, evaluation.successes
    draw_plane(axes, task, plane)
    if evaluation.init_state_set.kind == "ood":
        _draw_reset_box(axes, task, plane)
    if len(evaluation.demonstrated):
        demonstrated = map_coordinates(evaluation.demonstrated, plane)
        axes.scatter(*demonstrated, s=40, color=GRAY, marker="+", label="demonstrated")
    if succeeded.any():
        axes.scatter(*map_coordinates(rand_vecs[succeeded], plane), s=22, color=GREEN, linewidths=0, label="success")
    if not succeeded.all():
        failed = map_coordinates(rand_vecs[~succeeded], plane)
        axes.scatter(*failed, s=22, color=RED, marker="x", linewidths=1.3, label="failure")


def success_figures(evaluation: Evaluation) -> list[Figure]:
    """Draw success over the initial states: as cells if they are a lattice, otherwise as points, a figure per plane."""
    if evaluation.init_state_set.kind == "grid":
        return [_heat_figure(evaluation)]
    figures = []
    for plane in map_planes(get_task(evaluation.task)):
        figure = new_figure()
        draw_success(figure.axes[0], evaluation, plane)
        add_legend(figure)
        figures.append(figure)
    return figures


def comparison_figure(rows: Mapping[str, Evaluation]) -> Figure:
    """Draw the success of policies of one task over their initial states, a titled row each."""
    planes = map_planes(get_task(next(iter(rows.values())).task))
    figure = new_figure(len(planes), len(rows))
    for i, (title, evaluation) in enumerate(rows.items()):
        figure.axes[i * len(planes)].set_title(title, loc="left", fontsize=10)
        for j, plane in enumerate(planes):
            draw_success(figure.axes[i * len(planes) + j], evaluation, plane)
    labels: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_reset_box(axes: Axes, task: Task, plane: Plane) -> None:
    """Extend the axes to initial states outside the reset box, and draw the box."""
    from matplotlib.patches import Rectangle

    x, y = plane
    margin = 1.2 * OOD_MARGIN * task.width
    axes.set_xlim(task.low[x] - margin[x], task.high[x] + margin[x])
    low, height = 0.0, 1.0
    if y is not None:
        axes.set_ylim(task.low[y] - margin[y], task.high[y] + margin[y])
        low, height = task.low[y], float(task.width[y])
    box = Rectangle((task.low[x], low), float(task.width[x]), height, fill=False, color=GRAY, label="reset box")
    axes.add_patch(box)


def _heat_figure(evaluation: Evaluation) -> Figure:
    """Draw the result of each cell of a lattice of initial states as a color, over the first two dimensions.

    A failure is hatched. A cell stays empty if the benchmark allows no initial state there and another was used.
    """
    from matplotlib.patches import Rectangle

    task, init_states = get_task(evaluation.task), evaluation.init_state_set.init_states
    rows, cols = InitialStateDistribution(task.name, "grid").grid_shape(len(init_states))
    dims = task.informative[:2]
    plane = (int(dims[0]), int(dims[1]) if len(dims) > 1 else None)
    figure = new_figure()
    (axes,) = figure.axes
    draw_plane(axes, task, plane)
    low, width = np.asarray(task.low)[dims], task.width[dims]
    size = width / np.array([cols, rows])[: len(dims)]
    labeled: set[str] = set()
    for i, succeeded in enumerate(evaluation.successes):
        cell = np.array([i % cols, i // cols])[: len(dims)]
        corner = low + cell * size
        if np.abs(init_states[i].array[dims] - (corner + size / 2)).max() > SAME_INIT_STATE_M:
            continue
        result, color, hatch = ("success", GREEN, None) if succeeded else ("failure", RED, "xx")
        y, height = (corner[1], size[1]) if len(dims) > 1 else (0.0, 1.0)
        patch = Rectangle((corner[0], y), size[0], height, facecolor=color, edgecolor="white", hatch=hatch, alpha=0.75)
        patch.set_label("" if result in labeled else result)
        axes.add_patch(patch)
        labeled.add(result)
    demonstrated = map_coordinates(evaluation.demonstrated, plane)
    axes.scatter(*demonstrated, s=30, color="black", marker="+", linewidths=0.8, label="demonstrated")
    add_legend(figure)
    return figure


def distance_figure(bins: Sequence[Bin]) -> Figure:
    """Draw the success rate over the distance to the nearest demonstration, with intervals."""
    figure = new_figure()
    (axes,) = figure.axes
    points = np.array([(each.low, each.high, each.rate.value, *each.rate.interval) for each in bins])
    ranges, value, intervals = points[:, :2], points[:, 2], points[:, 3:]
    center = ranges.mean(axis=1)
    xerr, yerr = np.abs(ranges.T - center), 100 * np.abs(intervals.T - value)
    axes.errorbar(center, 100 * value, xerr=xerr, yerr=yerr, fmt="o", color=BLUE, ms=5, lw=1.2)
    axes.set_ylim(-5, 105)
    axes.set_xlim(left=0)
    axes.set(xlabel="distance to nearest demonstration (box widths)", ylabel="success (%)")
    return figure
