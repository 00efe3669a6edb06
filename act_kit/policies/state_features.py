"""Features of a state that its normalized numbers hide: relative positions at the scale of contact, and velocities.

Success and the phases of the scripted experts depend on distances of one or two centimeters between hand, objects and
goal. Positions that are normalized by their spread over a dataset, about 10 cm, differ by a tenth there.

Shapes: B batch, S state, P pairs of points times 3, V velocities.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

POINTS = {"hand": slice(0, 3), "object 1": slice(4, 7), "object 2": slice(11, 14), "goal": slice(36, 39)}
"""Positions in a state, meters; an object that a task does not have is at the origin."""

_PREVIOUS = 18
"""Offset of a number of the previous frame from the same number of the current one."""

_FAR_M, _NEAR_M = 0.1, 0.02
"""Scales of relative positions: linear over the workspace, saturating at the precision of a grasp."""

_STEP_M = 0.01
"""Largest displacement of the commanded hand position in a step."""

_MAX_VELOCITY = 3.0
"""Bound of the velocities in units of ``_STEP_M``: an object can be thrown."""

RELATIVE_DIM = 2 * 3 * len(list(itertools.combinations(POINTS, 2)))
"""Width of :func:`relative_positions`."""

VELOCITY_DIM = {True: 9, False: 3}
"""Width of :func:`velocities`, with and without the objects."""


def positions(states_BS: Tensor) -> Tensor:
    """Return the positions of hand, objects and goal, meters, (B, 12); ``states_BS`` are not normalized."""
    return torch.cat([states_BS[:, part] for part in POINTS.values()], dim=1)


def relative_positions(positions_BP: Tensor) -> Tensor:
    """Return the positions of hand, objects and goal relative to each other, at two scales, (B, RELATIVE_DIM).

    ``positions_BP`` are those of :func:`positions`, or estimates of them.
    """
    points = positions_BP.split(3, dim=1)  # type: ignore[no-untyped-call]
    differences: list[Tensor] = []
    for first, second in itertools.combinations(points, 2):
        differences.append(second - first)
    offsets_BP = torch.cat(differences, dim=1)
    return torch.cat([offsets_BP / _FAR_M, torch.tanh(offsets_BP / _NEAR_M)], dim=1)


def velocities(states_BS: Tensor, *, objects: bool) -> Tensor:
    """Return the displacements of the hand and, with ``objects``, of both objects since the previous frame, (B, V).

    The commanded position that the hand follows is not part of a state, but the hand's velocity depends on it. The unit
    is the largest commanded displacement in a step, 0.01 m.
    """
    moved: list[Tensor] = []
    for name in ("hand", "object 1", "object 2") if objects else ("hand",):
        part = POINTS[name]
        previous = slice(part.start + _PREVIOUS, part.stop + _PREVIOUS)
        moved.append(states_BS[:, part] - states_BS[:, previous])
    return (torch.cat(moved, dim=1) / _STEP_M).clamp(-_MAX_VELOCITY, _MAX_VELOCITY)
