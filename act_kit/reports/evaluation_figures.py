"""Figures of an evaluation: success over initial states, and over the distance to the demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from act_kit.eval.distance_to_demos import Bin
from act_kit.eval.results import Evaluation
from act_kit.pages import BLUE, GRAY, GREEN, RED, new_maps
from act_kit.reports.coverage import draw_axes, place
from act_kit.sim.initial_states import OOD_MARGIN, SAME_INIT_STATE_M, InitialStateDistribution
from act_kit.sim.tasks import Task, get_task, map_planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def map_figure(evaluation: Evaluation) -> Figure:
    """Draw success over the initial states: as cells if they are a lattice, otherwise as points."""
    if evaluation.init_state_set.kind == "grid":
        return heat_figure(evaluation)
    return success_figure({"": evaluation})


def success_figure(rows: Mapping[str, Evaluation]) -> Figure:
    """Draw successes and failures of policies of one task over their demonstrated initial states, a row each."""
    task = get_task(next(iter(rows.values())).task)
    pairs = map_planes(task)
    figure = new_maps(len(pairs), num_rows=len(rows))
    grid = np.array(figure.axes).reshape(len(rows), len(pairs))
    legend: dict[str, Any] = {}
    for axes_row, (name, evaluation) in zip(grid, rows.items(), strict=True):
        rand_vecs = evaluation.init_states
        succeeded = evaluation.successes
        axes_row[0].set_title(name, loc="left", fontsize=10)
        for axes, pair in zip(axes_row, pairs, strict=True):
            draw_axes(axes, task, pair)
            if evaluation.init_state_set.kind == "ood":
                legend["reset box"] = _widen(axes, task, pair)
            legend["demonstrated"] = axes.scatter(*place(evaluation.demonstrated, pair), s=40, color=GRAY, marker="+")
            for mask, color, result in ((succeeded, GREEN, "success"), (~succeeded, RED, "failure")):
                if mask.any():
                    legend[result] = axes.scatter(*place(rand_vecs[mask], pair), s=16, color=color, linewidths=0)
    figure.legend(list(legend.values()), list(legend), loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    return figure


def _widen(axes: Axes, task: Task, pair: tuple[int, int | None]) -> Any:
    """Extend the axes to initial states outside the reset box, and draw the box."""
    from matplotlib.patches import Rectangle

    x, y = pair
    margin = 1.2 * OOD_MARGIN * task.width
    axes.set_xlim(task.low[x] - margin[x], task.high[x] + margin[x])
    if y is not None:
        axes.set_ylim(task.low[y] - margin[y], task.high[y] + margin[y])
    low, height = (0.0, 1.0) if y is None else (task.low[y], float(task.width[y]))
    return axes.add_patch(Rectangle((task.low[x], low), float(task.width[x]), height, fill=False, color=GRAY))


def heat_figure(evaluation: Evaluation) -> Figure:
    """Draw the result of each cell of a lattice of initial states as a color, over the first two dimensions.

    A cell stays empty if the benchmark allows no initial state there and another one was used instead.
    """
    from matplotlib.patches import Rectangle

    task, init_states = get_task(evaluation.task), evaluation.init_state_set.init_states
    rows, cols = InitialStateDistribution(task.name, "grid").grid_shape(len(init_states))
    dims = task.informative[:2]
    pair = (int(dims[0]), int(dims[1]) if len(dims) > 1 else None)
    figure = new_maps(1)
    figure.set_size_inches(4.6, 3.6)
    (axes,) = figure.axes
    draw_axes(axes, task, pair)
    low, width = np.asarray(task.low)[dims], task.width[dims]
    size = width / np.array([cols, rows])[: len(dims)]
    legend: dict[str, Any] = {}
    for i, succeeded in enumerate(evaluation.successes):
        cell = np.array([i % cols, i // cols])[: len(dims)]
        corner = low + cell * size
        if np.abs(init_states[i].array[dims] - (corner + size / 2)).max() > SAME_INIT_STATE_M:
            continue
        result, color = ("success", GREEN) if succeeded else ("failure", RED)
        y, height = (corner[1], size[1]) if len(dims) > 1 else (0.0, 1.0)
        patch = Rectangle((corner[0], y), size[0], height, facecolor=color, edgecolor="white", alpha=0.75)
        legend[result] = axes.add_patch(patch)
    at = place(evaluation.demonstrated, pair)
    legend["demonstrated"] = axes.scatter(*at, s=30, color="black", marker="+", linewidths=0.8)
    figure.legend(list(legend.values()), list(legend), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def distance_figure(bins: Sequence[Bin]) -> Figure:
    """Draw the success rate over the distance to the nearest demonstration, with intervals."""
    figure = new_maps(1)
    figure.set_size_inches(4.6, 2.7)
    (axes,) = figure.axes
    low, high = np.array([each.low for each in bins]), np.array([each.high for each in bins])
    center = (low + high) / 2
    value = np.array([each.rate.value for each in bins])
    intervals = np.array([each.rate.interval for each in bins])
    xerr, yerr = np.stack([center - low, high - center]), np.abs(intervals.T - value)
    axes.errorbar(center, value, xerr=xerr, yerr=yerr, fmt="o", color=BLUE, ms=5, lw=1.2)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlim(left=0)
    axes.set_xlabel("distance to the nearest demonstrated initial state (box widths)", fontsize=9)
    axes.set_ylabel("success", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure
