"""Pictures of an evaluation: where it succeeded, and how far from what was demonstrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from act_kit.eval.distance_to_demos import Bin
from act_kit.eval.evaluate import Evaluation
from act_kit.pages import BLUE, GREEN, GREY, RED, new_maps
from act_kit.policies.policy import Policy
from act_kit.reports.coverage import draw_axes, panels, place
from act_kit.sim.initial_states import OOD_MARGIN, SAME_INIT_STATE_M, InitialStateDistribution, stack
from act_kit.sim.tasks import Task, get_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def map_figure(evaluation: Evaluation, policy: Policy) -> Figure:
    """Draw where a policy succeeded: cells of a lattice, if its starts are one; otherwise start by start."""
    if evaluation.init_state_set.kind == "grid":
        return heat_figure(evaluation, policy)
    return success_figure({"": (evaluation, policy)})


def success_figure(rows: Mapping[str, tuple[Evaluation, Policy]]) -> Figure:
    """Draw where policies of one task succeeded and failed, over the starts each was shown: a row of maps each."""
    task = get_task(next(iter(rows.values()))[0].init_state_set.task)
    pairs = panels(task)
    figure = new_maps(len(pairs), num_rows=len(rows))
    grid = np.array(figure.axes).reshape(len(rows), len(pairs))
    failure_modes: dict[str, Any] = {}
    for line, (name, (evaluation, policy)) in zip(grid, rows.items(), strict=True):
        rand_vecs = stack(evaluation.init_state_set.init_states)
        succeeded = np.array([outcome.success_once for outcome in evaluation.outcomes])
        shown = np.array(policy.contract.init_states_of(task.name)).reshape(-1, len(task.low))
        line[0].set_title(name, loc="left", fontsize=10)
        for axes, pair in zip(line, pairs, strict=True):
            draw_axes(axes, task, pair)
            if evaluation.init_state_set.kind == "ood":
                failure_modes["reset box"] = _widen(axes, task, pair)
            failure_modes["demonstrated"] = axes.scatter(*place(shown, pair), s=40, color=GREY, marker="+")
            for mask, color, failure_mode in ((succeeded, GREEN, "success"), (~succeeded, RED, "failure")):
                if mask.any():
                    failure_modes[failure_mode] = axes.scatter(
                        *place(rand_vecs[mask], pair), s=16, color=color, linewidths=0
                    )
    figure.legend(
        list(failure_modes.values()), list(failure_modes), loc="outside upper right", ncols=4, frameon=False, fontsize=9
    )
    return figure


def _widen(axes: Axes, task: Task, pair: tuple[int, int | None]) -> Any:
    """Make room for starts outside the reset box, and draw the box."""
    from matplotlib.patches import Rectangle

    x, y = pair
    margin = 1.2 * OOD_MARGIN * task.width
    axes.set_xlim(task.low[x] - margin[x], task.high[x] + margin[x])
    if y is not None:
        axes.set_ylim(task.low[y] - margin[y], task.high[y] + margin[y])
    low, height = (0.0, 1.0) if y is None else (task.low[y], float(task.width[y]))
    return axes.add_patch(Rectangle((task.low[x], low), float(task.width[x]), height, fill=False, color=GREY))


def heat_figure(evaluation: Evaluation, policy: Policy) -> Figure:
    """Draw the cells of a lattice of starts in the colour of what happened there, over the first two dimensions.

    A cell stays empty where the benchmark allows no start and another one stood in for it.
    """
    from matplotlib.patches import Rectangle

    task, init_states = get_task(evaluation.init_state_set.task), evaluation.init_state_set.init_states
    rows, cols = InitialStateDistribution(task.name, "grid").grid_shape(len(init_states))
    dims = task.informative[:2]
    pair = (int(dims[0]), int(dims[1]) if len(dims) > 1 else None)
    figure = new_maps(1)
    figure.set_size_inches(4.6, 3.6)
    (axes,) = figure.axes
    draw_axes(axes, task, pair)
    low, width = np.asarray(task.low)[dims], task.width[dims]
    size = width / np.array([cols, rows])[: len(dims)]
    failure_modes: dict[str, Any] = {}
    for i, outcome in enumerate(evaluation.outcomes):
        cell = np.array([i % cols, i // cols])[: len(dims)]
        corner = low + cell * size
        if np.abs(init_states[i].array[dims] - (corner + size / 2)).max() > SAME_INIT_STATE_M:
            continue
        failure_mode, color = ("success", GREEN) if outcome.success_once else ("failure", RED)
        y, height = (corner[1], size[1]) if len(dims) > 1 else (0.0, 1.0)
        patch = Rectangle((corner[0], y), size[0], height, facecolor=color, edgecolor="white", alpha=0.75)
        failure_modes[failure_mode] = axes.add_patch(patch)
    shown = np.array(policy.contract.init_states_of(task.name)).reshape(-1, len(task.low))
    failure_modes["demonstrated"] = axes.scatter(*place(shown, pair), s=30, color="black", marker="+", linewidths=0.8)
    figure.legend(
        list(failure_modes.values()), list(failure_modes), loc="outside upper right", ncols=3, frameon=False, fontsize=9
    )
    return figure


def nearness_figure(bins: Sequence[Bin]) -> Figure:
    """Draw success over the distance to the nearest demonstration, with intervals."""
    figure = new_maps(1)
    figure.set_size_inches(4.6, 2.7)
    (axes,) = figure.axes
    middle = np.array([(each.low + each.high) / 2 for each in bins])
    value = np.array([each.rate.value for each in bins])
    ends = np.array([each.rate.interval for each in bins])
    reach = [[m - each.low for m, each in zip(middle, bins, strict=True)],
             [each.high - m for m, each in zip(middle, bins, strict=True)]]  # fmt: skip
    axes.errorbar(middle, value, xerr=reach, yerr=np.abs(ends.T - value), fmt="o", color=BLUE, ms=5, lw=1.2)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlim(left=0)
    axes.set_xlabel("distance to the nearest demonstrated start (box widths)", fontsize=9)
    axes.set_ylabel("success", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure
