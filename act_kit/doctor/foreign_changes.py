"""Changes of a foreign policy's actions that undo faults of its adapter, and the one that agrees best with the expert.

Shapes: E episodes, S observations of an episode, A numbers of an action.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from act_kit.doctor.agreement import errors
from act_kit.sim.engine import clip_actions

IN_ORDER = (0, 1, 2, 3)
SIGNS = (1, 1, 1)
_LEAST_FACTOR = 4.0
"""Least factor between scales that is not a matter of preference: a slow controller does not have a wrong unit."""

_AS_GOOD = 1.1
"""Ratio of the errors up to which the simpler of two changes is taken: along some axes nothing moves."""

GRIPPER_CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "sign turned": (lambda values: -values, "negate the 4th number"),
    "range of 0 to 1 stretched to -1 to 1": (lambda values: 2 * values - 1, "replace the 4th number g by 2 g - 1"),
    "range of 0 to 1 stretched to 1 to -1": (lambda values: 1 - 2 * values, "replace the 4th number g by 1 - 2 g"),
}


@dataclass(frozen=True, kw_only=True)
class ActionChange:
    """Change of actions (…, 4): first the order of the numbers, then signs and scale of x, y and z, and the gripper.

    Attributes:
        order: The number of the given actions that becomes each number.
        signs: Signs of x, y and z.
        factor: Factor of x, y and z.
        gripper: Key of ``GRIPPER_CHANGES``; "" for none.
    """

    order: tuple[int, ...] = IN_ORDER
    signs: tuple[int, ...] = SIGNS
    factor: float = 1.0
    gripper: str = ""

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return the changed actions."""
        ordered = actions[..., list(self.order)]
        gripper = ordered[..., 3:]
        if self.gripper:
            gripper = GRIPPER_CHANGES[self.gripper][0](gripper)
        return np.concatenate([ordered[..., :3] * (self.factor * np.array(self.signs)), gripper], axis=-1)

    @property
    def has_axes(self) -> bool:
        """True if numbers are exchanged or axes turned."""
        return (self.order, self.signs) != (IN_ORDER, SIGNS)

    def __str__(self) -> str:
        parts: list[str] = []
        if self.has_axes:
            parts.append(f"(x, y, z) taken from {self.axes_name}")
        if self.factor != 1:
            parts.append(f"x, y and z multiplied by {self.factor:.2g}")
        if self.gripper:
            parts.append(f"the gripper's {self.gripper}")
        return " and ".join(parts)

    @property
    def axes_name(self) -> str:
        """Where x, y and z are taken from, for example ``(-x, z, y)``."""
        is_last = self.order[3] == 3  # else x, y and z are not the first three
        names = "xyz" if is_last else "1234"
        taken = [f"{'-' if sign < 0 else ''}{names[dim]}" for dim, sign in zip(self.order[:3], self.signs, strict=True)]
        return f"{'' if is_last else 'the numbers '}({', '.join(taken)})"


IDENTITY = ActionChange()


def _list_orders() -> list[ActionChange]:
    """Return all orders and signs of x, y and z, with the gripper last or first; those with fewer changes first."""
    changes: list[ActionChange] = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            changes.append(ActionChange(order=(*order, 3), signs=signs))
            changes.append(ActionChange(order=(*[dim + 1 for dim in order], 0), signs=signs))
    return sorted(changes, key=_num_changed)


def _num_changed(change: ActionChange) -> int:
    return sum(i != dim for i, dim in enumerate(change.order)) + change.signs.count(-1)


_ORDERS = _list_orders()
NUM_ORDERS, NUM_FACTORS = len(_ORDERS) - 1, 74
"""Number of changes of the axes, and of the scale, among which the best is chosen."""


def _list_factors(per_decade: int) -> list[float]:
    """Return factors from 10^-4 to 10^4 that are not a matter of preference."""
    exponents = [k / per_decade for k in range(-4 * per_decade, 4 * per_decade + 1)]
    return [10**exponent for exponent in exponents if abs(exponent) >= np.log10(_LEAST_FACTOR)]


def best_change(actions: np.ndarray, expert: np.ndarray) -> ActionChange:
    """Return the change with which actions (E, S, 4) agree best with the expert's.

    Of several that are about as good, it is the one with the fewest parts.
    """
    tried: list[tuple[float, ActionChange]] = []
    for factor in (1.0, *_list_factors(6)):
        parts = {sign: _errors_of_numbers(sign * factor * actions, expert) for sign in (1, -1)}
        for order in _ORDERS:
            total = sum(parts[sign][order.order[dim], dim] for dim, sign in enumerate(order.signs))
            tried.append((float(total), replace(order, factor=factor)))
    limit = _AS_GOOD * min(total for total, _ in tried) + 1e-6
    as_good = [(total, change) for total, change in tried if total <= limit]
    _, change = min(as_good, key=lambda each: (_num_changed(each[1]) + (each[1].factor != 1), each[0]))
    if change.factor != 1:
        change = best_scale(actions, expert, change)
    grippers = ["", *GRIPPER_CHANGES]
    totals = [float(errors(replace(change, gripper=name)(actions), expert, (3,)).mean()) for name in grippers]
    is_as_good = [total <= _AS_GOOD * min(totals) + 1e-6 for total in totals]
    return replace(change, gripper=grippers[is_as_good.index(True)])


def _errors_of_numbers(actions: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Return the mean absolute error of each number of the actions, taken for each number of the expert's, (A, A)."""
    table: np.ndarray = np.nanmean(np.abs(clip_actions(actions)[..., :, None] - expert[..., None, :]), axis=(0, 1))
    return table


def best_scale(actions: np.ndarray, expert: np.ndarray, change: ActionChange) -> ActionChange:
    """Return a change with the factor with which it agrees best."""
    changes = [replace(change, factor=factor) for factor in _list_factors(12)]
    totals = [float(errors(each(actions), expert, range(3)).mean()) for each in changes]
    return changes[int(np.argmin(totals))]
