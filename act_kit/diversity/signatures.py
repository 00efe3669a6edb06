"""Signatures of common recording mistakes, found by comparing recorded values with expected ones.

The functions compare arrays and need no simulator. They return a signature only if it explains nearly all differing
rows, otherwise None.

Shapes: T steps, A action (x, y, z, gripper), S state, N differing rows, C differing columns.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-5
"""Largest difference between equal actions; experts are exact, actions are float32."""

_EXPLAINED = 0.95
"""Share of the differing rows that a signature must explain."""
_MIN_ROWS = 4
"""Smallest number of differing rows; with fewer, any signature would fit."""
_MAX_LAG = 10
_FIT = 1e-4
_SATURATED = 1 - 1e-6
_AXES = ("x", "y", "z", "gripper")
_GROUPS = {"hand": (0, 3), "gripper": (3, 4), "object": (4, 11), "second object": (11, 18), "goal": (36, 39)}
"""Index ranges of the parts of a state; 18 to 35 repeat the first four parts, one step earlier."""
_UNITS = {1000.0: ": millimeters, not meters", 100.0: ": centimeters, not meters"}


class Signature(NamedTuple):
    """A recording mistake.

    Attributes:
        kind: Name, one of :data:`act_kit.diversity.faults.KINDS`.
        text: Description that completes "these demonstrations have".
    """

    kind: str
    text: str


def differing_rows(recorded: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return which rows of actions (T, A) differ by more than :data:`TOLERANCE`, bool (T,)."""
    return np.asarray(~(np.abs(recorded - expected) <= TOLERANCE).all(axis=1))


# -- actions -----------------------------------------------------------------------------------------------------------


def explain_actions(recorded: np.ndarray, expected: np.ndarray, owner: str) -> Signature | None:
    """Find the mistake that turned the actions ``expected`` into ``recorded``, both (T, A).

    ``owner`` describes the expected actions in messages, such as "the expert's".
    """
    differs = differing_rows(recorded, expected)
    if differs.sum() < _MIN_ROWS:
        return None
    lag = _find_lag(recorded, expected, differs, TOLERANCE)
    if lag:
        return Signature("actions off by some steps", f"actions that are {owner} of {lag}")
    recorded_NA, expected_NA = recorded[differs].astype(np.float64), expected[differs].astype(np.float64)
    return (
        _explain_by_scale(recorded_NA, expected_NA, owner)
        or _explain_by_axes(recorded_NA, expected_NA, owner)
        or _explain_by_noise(recorded_NA, expected_NA, owner)
    )


def _find_lag(recorded: np.ndarray, expected: np.ndarray, differs: np.ndarray, tolerance: float) -> str:
    """Describe the number of steps by which ``recorded`` is shifted in all differing rows; "" if there is none."""
    rows = np.flatnonzero(differs)
    for lag in sorted(range(-_MAX_LAG, _MAX_LAG + 1), key=abs)[1:]:
        inside = rows[(rows + lag >= 0) & (rows + lag < len(expected))]
        if len(inside) < max(_MIN_ROWS - 1, 0.6 * len(rows)):
            continue
        same = (np.abs(recorded[inside] - expected[inside + lag]) <= tolerance).all(axis=1)
        if (~same).sum() <= max(1, (1 - _EXPLAINED) * len(inside)) and same.sum() >= _MIN_ROWS - 1:
            return f"{abs(lag)} step{'s' if abs(lag) > 1 else ''} {'earlier' if lag < 0 else 'later'}"
    return ""


def _explain_by_scale(recorded_NA: np.ndarray, expected_NA: np.ndarray, owner: str) -> Signature | None:
    """Find a scale and an offset per axis: clip(factor · expected + offset)."""
    changed: dict[str, tuple[float, float]] = {}
    for axis, recorded, expected in zip(_AXES, recorded_NA.T, expected_NA.T, strict=True):
        fit = _fit_axis(recorded, expected)
        if fit is None:
            return None
        if fit != (1.0, 0.0):
            changed[axis] = fit
    if not changed:
        return None
    factors, offsets = np.array(list(changed.values())).T

    def show(template: str) -> str:
        return ", ".join(template.format(axis, *changed[axis]) for axis in changed)

    if not factors.any():
        return Signature("action axis is constant", f"actions whose {show('{0} is always {2:.3g}')}, unlike {owner}")
    if offsets.any() and (factors == 1).all():
        return Signature("actions offset", f"actions that are {owner}, shifted ({show('{0}: {2:+.3g}')})")
    if offsets.any():
        shown = show("{0}: times {1:.3g}, {2:+.3g}")
        return Signature("actions scaled", f"actions that are {owner}, shifted ({shown})")
    names = ", ".join(changed)
    if (np.abs(factors + 1) < _FIT).all():
        has = "have" if len(changed) > 1 else "has"
        return Signature("actions with a wrong sign", f"actions whose {names} {has} the opposite sign of {owner}")
    shown = f"{factors[0]:.3g}, in {names}" if np.ptp(factors) < 1e-3 else show("{0}: {1:.3g}")
    kind = "actions with a wrong sign" if factors.min() < 0 else "actions scaled"
    return Signature(kind, f"actions that are {owner} times a factor ({shown})")


def _fit_axis(recorded: np.ndarray, expected: np.ndarray) -> tuple[float, float] | None:
    """Return (factor, offset) with ``recorded`` = clip(factor · expected + offset), or None."""
    inside = np.abs(recorded) < _SATURATED
    varied = inside & (np.abs(expected) > max(0.1 * np.abs(expected).max(), TOLERANCE))
    candidates = [(1.0, 0.0)]
    if varied.any():
        candidates.append((float(np.median(recorded[varied] / expected[varied])), 0.0))
    if inside.any():
        candidates.append((1.0, float(np.median(recorded[inside] - expected[inside]))))
    if inside.sum() >= _MIN_ROWS and np.ptp(expected[inside]) > _FIT:
        factor, offset = np.polyfit(expected[inside], recorded[inside], 1).tolist()
        candidates.append((factor, offset))
    if np.ptp(recorded) <= TOLERANCE:
        candidates.append((0.0, float(recorded[0])))
    for factor, offset in candidates:
        fits = np.abs(np.clip(factor * expected + offset, -1, 1) - recorded) <= _FIT
        if fits.mean() >= _EXPLAINED:
            return factor, offset
    return None


def _explain_by_axes(recorded_NA: np.ndarray, expected_NA: np.ndarray, owner: str) -> Signature | None:
    """Find a permutation of the axes, possibly with signs."""
    axes = np.arange(recorded_NA.shape[1])
    same = (np.abs(recorded_NA[:, :, None] - expected_NA[:, None]) <= _FIT).mean(axis=0)
    opposite = (np.abs(recorded_NA[:, :, None] + expected_NA[:, None]) <= _FIT).mean(axis=0)
    orders = np.array(list(permutations(axes)))
    for order in orders[np.argsort((orders != axes).sum(axis=1), kind="stable")][1:]:
        is_same = same[axes, order] >= _EXPLAINED
        if (is_same | (opposite[axes, order] >= _EXPLAINED)).all():
            moved = []
            for i, j in enumerate(order):
                if i != j or not is_same[i]:
                    moved.append(f"{_AXES[i]} is {'' if is_same[i] else '-'}{_AXES[j]}")
            return Signature("action axes swapped", f"actions that are {owner} with axes swapped ({', '.join(moved)})")
    return None


def _explain_by_noise(recorded_NA: np.ndarray, expected_NA: np.ndarray, owner: str) -> Signature | None:
    """Check for noise: zero-mean differences that are independent of the step and of the action."""
    residual_NA = recorded_NA - expected_NA
    if len(residual_NA) < 2 * _MIN_ROWS or np.corrcoef(recorded_NA.ravel(), expected_NA.ravel())[0, 1] < 0.5:
        return None
    inside = (np.abs(expected_NA) < 0.5) & (np.abs(recorded_NA) < _SATURATED)
    noise = residual_NA[inside] if inside.sum() >= 10 else residual_NA.ravel()
    spread = float(noise.std())
    if spread < 1e-4 or not _is_white(residual_NA):
        return None
    if inside.sum() >= 10 and abs(noise.mean()) > (0.1 + 4 / np.sqrt(len(noise))) * spread:
        return None
    return Signature("labels are noisy", f"actions that are {owner} plus noise (standard deviation about {spread:.2g})")


def _is_white(residual: np.ndarray) -> bool:
    """Return True if the columns of (N, …) are uncorrelated between successive rows."""
    centered = residual - residual.mean(axis=0)
    power = float((centered**2).sum())
    return power > 0 and abs(float((centered[1:] * centered[:-1]).sum())) < (0.1 + 3 / np.sqrt(centered.size)) * power


# -- states ------------------------------------------------------------------------------------------------------------


def explain_states(recorded: np.ndarray, expected: np.ndarray) -> Signature | None:
    """Find the mistake that turned the states ``expected``, (T + 1, S), into ``recorded``, (T, S)."""
    differing = recorded != expected[: len(recorded)]
    rows, columns = differing.any(axis=1), differing.any(axis=0)
    if not rows.any():
        return None
    recorded_NS, expected_NS = recorded[rows], expected[: len(recorded)][rows]
    recorded_NC, expected_NC = recorded_NS[:, columns], expected_NS[:, columns]
    names = _name_columns(columns)
    subject = f"states whose {', '.join(names)} {'are' if len(names) > 1 else 'is'}"
    lag = _find_lag(recorded[:, columns], expected[:, columns], rows, 0.0)
    if lag:
        return Signature("states off by some steps", f"{subject} those of {lag}, from step {np.argmax(rows)} on")
    if not recorded_NC.any():
        return Signature("goal hidden" if names == ["goal"] else "states changed", f"{subject} 0")
    for digits in range(1, 6):
        if (np.abs(recorded_NC - expected_NC.round(digits)) < 1e-9).all():
            return Signature("states rounded", f"{subject} rounded to {10.0**-digits:g} m")
    known = np.abs(expected_NC) > 1e-9
    factor = float(np.median(recorded_NC[known] / expected_NC[known])) if known.any() else np.nan
    if np.allclose(recorded_NC, factor * expected_NC, rtol=1e-5, atol=1e-9):
        unit = _UNITS.get(round(factor, 3), "")
        return Signature("states in another unit", f"{subject} {factor:.4g} times those of the simulator{unit}")
    residual_NC = recorded_NC - expected_NC
    if (np.ptp(residual_NC, axis=0) < 1e-9).all():
        most = np.abs(residual_NC).max()
        return Signature("states changed", f"{subject} off by a constant (up to {most:.4g} m)")
    if all((expected_NS == column[:, None]).all(axis=0).any() for column in recorded_NC.T):
        return Signature("states changed", f"{subject} in another order")
    if len(residual_NC) >= 2 * _MIN_ROWS and _is_white(residual_NC):
        return Signature("states changed", f"{subject} noisy (standard deviation {residual_NC.std():.2g} m)")
    return None


def _name_columns(columns: np.ndarray) -> list[str]:
    """Return the names of the parts of the state that contain the marked ``columns``, bool (S,)."""
    now = columns.copy()
    now[:18] |= columns[18:36]
    return [name for name, (first, end) in _GROUPS.items() if now[first:end].any()]
