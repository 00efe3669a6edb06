"""Signatures of common recording mistakes, found by comparing recorded values with expected ones.

The functions compare arrays and need no simulator. They return a signature only if it explains nearly all differing
rows, otherwise None.

Shapes: T steps, A action (x, y, z, gripper), S state, N differing rows, C differing columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

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


@dataclass(frozen=True)
class Signature:
    """A recording mistake.

    Attributes:
        kind: Name, one of :data:`act_kit.diversity.soundness.KINDS`.
        text: Description that completes "these demonstrations have".
    """

    kind: str
    text: str


def differing_rows(recorded: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return which rows of actions (T, A) differ by more than :data:`TOLERANCE`, bool (T,)."""
    differs: np.ndarray = ~(np.abs(recorded - expected) <= TOLERANCE).all(axis=1)
    return differs


def explain_actions(recorded: np.ndarray, expected: np.ndarray, owner: str) -> Signature | None:
    """Find the mistake that turned the actions ``expected`` into ``recorded``, both (T, A).

    ``owner`` describes the expected actions in messages, such as "the expert's".
    """
    differs = differing_rows(recorded, expected)
    if differs.sum() < _MIN_ROWS:
        return None
    lag = _find_lag(recorded, expected, differs, TOLERANCE)
    if lag:
        return Signature(
            "actions off by some steps",
            f"actions that are {owner} of {_steps(lag)} {'earlier' if lag < 0 else 'later'}",
        )
    recorded_NA, expected_NA = (values[differs].astype(np.float64) for values in (recorded, expected))
    return (
        _explain_by_scale(recorded_NA, expected_NA, owner)
        or _explain_by_axes(recorded_NA, expected_NA, owner)
        or _explain_by_noise(recorded_NA, expected_NA, owner)
    )


def _verb(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _steps(num: int) -> str:
    return f"{abs(num)} step{'s' if abs(num) > 1 else ''}"


def _find_lag(recorded: np.ndarray, expected: np.ndarray, differs: np.ndarray, tolerance: float) -> int:
    """Return k if row t of ``recorded`` is row t + k of ``expected`` in all differing rows; 0 if there is no such k."""
    rows = np.flatnonzero(differs)
    for lag in sorted((k for k in range(-_MAX_LAG, _MAX_LAG + 1) if k), key=abs):
        inside = rows[(rows + lag >= 0) & (rows + lag < len(expected))]
        if len(inside) < max(_MIN_ROWS - 1, 0.6 * len(rows)):
            continue
        same = (np.abs(recorded[inside] - expected[inside + lag]) <= tolerance).all(axis=1)
        if (~same).sum() <= max(1, (1 - _EXPLAINED) * len(inside)) and same.sum() >= _MIN_ROWS - 1:
            return lag
    return 0


# -- scales, signs, zeros and offsets ------------------------------------------------------------------------------


def _explain_by_scale(recorded_NA: np.ndarray, expected_NA: np.ndarray, owner: str) -> Signature | None:
    """Find a scale and an offset per axis: clip(factor · expected + offset)."""
    fits = [_fit_axis(recorded_NA[:, i], expected_NA[:, i]) for i in range(recorded_NA.shape[1])]
    found = [fit for fit in fits if fit is not None]
    if len(found) < len(fits):
        return None
    changed = {name: fit for name, fit in zip(_AXES, found, strict=True) if fit != (1.0, 0.0)}
    if not changed:
        return None
    names = ", ".join(changed)
    factors = [factor for factor, _ in changed.values()]
    offsets = [offset for _, offset in changed.values()]
    if not any(factors):
        shown = ", ".join(f"{name} is always {offset:.3g}" for name, (_, offset) in changed.items())
        return Signature("action axis is constant", f"actions whose {shown}, unlike {owner}")
    if any(offsets):
        only_offset = set(factors) == {1.0}
        shown = ", ".join(
            f"{name}: {offset:+.3g}" if only_offset else f"{name}: times {factor:.3g}, {offset:+.3g}"
            for name, (factor, offset) in changed.items()
        )
        return Signature(
            "actions offset" if only_offset else "actions scaled", f"actions that are {owner}, shifted ({shown})"
        )
    if all(abs(factor + 1) < _FIT for factor in factors):
        has = "have" if len(changed) > 1 else "has"
        return Signature("actions with a wrong sign", f"actions whose {names} {has} the opposite sign of {owner}")
    shown = ", ".join(f"{name}: {factor:.3g}" for name, factor in zip(changed, factors, strict=True))
    if max(factors) - min(factors) < 1e-3:
        shown = f"{factors[0]:.3g}, in {names}"
    kind = "actions with a wrong sign" if min(factors) < 0 else "actions scaled"
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
        factor, offset = np.polyfit(expected[inside], recorded[inside], 1)
        candidates.append((float(factor), float(offset)))
    if np.ptp(recorded) <= TOLERANCE:
        candidates.append((0.0, float(recorded[0])))
    for factor, offset in candidates:
        fits = np.abs(np.clip(factor * expected + offset, -1, 1) - recorded) <= _FIT
        if fits.mean() >= _EXPLAINED:
            return factor, offset
    return None


# -- axes ----------------------------------------------------------------------------------------------------------


def _explain_by_axes(recorded_NA: np.ndarray, expected_NA: np.ndarray, owner: str) -> Signature | None:
    """Find a permutation of the axes, possibly with signs."""
    num = recorded_NA.shape[1]
    share = np.empty((num, num, 2))
    for i, j, flipped in product(range(num), range(num), (0, 1)):
        sign = -1 if flipped else 1
        share[i, j, flipped] = (np.abs(recorded_NA[:, i] - sign * expected_NA[:, j]) <= _FIT).mean()
    orders = sorted(permutations(range(num)), key=lambda order: sum(j != i for i, j in enumerate(order)))
    for order in orders[1:]:
        axis_shares = [share[i, j] for i, j in enumerate(order)]
        if min(max(shares) for shares in axis_shares) >= _EXPLAINED:
            signs = ["" if shares[0] >= _EXPLAINED else "-" for shares in axis_shares]
            moved = [f"{_AXES[i]} is {signs[i]}{_AXES[j]}" for i, j in enumerate(order) if i != j or signs[i]]
            return Signature("action axes swapped", f"actions that are {owner} with axes swapped ({', '.join(moved)})")
    return None


# -- noise ---------------------------------------------------------------------------------------------------------


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


# -- states --------------------------------------------------------------------------------------------------------


def explain_states(recorded: np.ndarray, expected: np.ndarray) -> Signature | None:
    """Find the mistake that turned the states ``expected``, (T + 1, S), into ``recorded``, (T, S)."""
    differing = recorded != expected[: len(recorded)]
    rows, columns = differing.any(axis=1), differing.any(axis=0)
    if not rows.any():
        return None
    recorded_NC = recorded[rows][:, columns]
    expected_NC = expected[: len(recorded)][rows][:, columns]
    names = name_columns(columns)
    lag = _find_lag(recorded[:, columns], expected[:, columns], rows, 0.0)
    if lag:
        when = f"{_steps(lag)} {'earlier' if lag < 0 else 'later'}, from step {int(np.argmax(rows))} on"
        return Signature("states off by some steps", f"states whose {', '.join(names)} {_verb(names)} those of {when}")
    subject = f"states whose {', '.join(names)} {_verb(names)}"
    if not recorded_NC.any():
        return Signature("goal hidden" if names == ["goal"] else "states changed", f"{subject} 0")
    for digits in range(1, 6):
        if (np.abs(recorded_NC - expected_NC.round(digits)) < 1e-9).all():
            return Signature("states rounded", f"{subject} rounded to {10.0**-digits:g} m")
    return _explain_by_unit(recorded_NC, expected_NC, subject) or _explain_by_change(
        recorded, expected, rows, columns, subject
    )


def _explain_by_unit(recorded_NC: np.ndarray, expected_NC: np.ndarray, subject: str) -> Signature | None:
    known = np.abs(expected_NC) > 1e-9
    if not known.any():
        return None
    factor = float(np.median(recorded_NC[known] / expected_NC[known]))
    if not np.allclose(recorded_NC, factor * expected_NC, rtol=1e-5, atol=1e-9):
        return None
    unit = {1000.0: ": millimeters, not meters", 100.0: ": centimeters, not meters"}.get(round(factor, 3), "")
    return Signature("states in another unit", f"{subject} {factor:.4g} times those of the simulator{unit}")


def _explain_by_change(
    recorded: np.ndarray, expected: np.ndarray, rows: np.ndarray, columns: np.ndarray, subject: str
) -> Signature | None:
    recorded_NS, expected_NS = recorded[rows], expected[: len(recorded)][rows]
    residual_NC = (recorded_NS - expected_NS)[:, columns]
    if (np.ptp(residual_NC, axis=0) < 1e-9).all():
        most = float(np.abs(residual_NC).max())
        return Signature("states changed", f"{subject} off by a constant (up to {most:.4g} m)")
    sources = [np.flatnonzero((expected_NS == recorded_NS[:, [i]]).all(axis=0)) for i in np.flatnonzero(columns)]
    if all(len(source) for source in sources):
        return Signature("states changed", f"{subject} in another order")
    if len(residual_NC) >= 2 * _MIN_ROWS and _is_white(residual_NC):
        return Signature("states changed", f"{subject} noisy (standard deviation {residual_NC.std():.2g} m)")
    return None


def name_columns(columns: np.ndarray) -> list[str]:
    """Return the names of the parts of the state that contain the marked ``columns``, bool (S,)."""
    now = columns.copy()
    now[:18] |= columns[18:36]
    return [name for name, (first, end) in _GROUPS.items() if now[first:end].any()]
