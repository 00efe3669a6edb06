"""Validation of arrays from users: dtype, shape and finite values, with the invalid rows in the error message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.errors import ArrayError

_MAX_NAMED = 3
"""Maximum number of rows that an error message lists."""


def as_array(value: object, what: str, shape: Sequence[int | str], *, fix: str = "") -> np.ndarray:
    """Return finite real numbers as an array, without changing their numeric dtype.

    Args:
        value: An array, nested lists, or a CPU tensor.
        what: Name of the array in error messages, for example ``actions``.
        shape: Expected shape; a string accepts any size and names the dimension: ``("T", 4)``.
        fix: Advice for the error message about a wrong shape.

    Raises:
        ArrayError: The values are not real numbers, have another shape, or contain NaN or infinity; the message lists
                the rows.
    """
    array = _read(value, what)
    if array.dtype.kind not in "fiu":
        raise ArrayError(f"{what} of type {array.dtype}: expected real numbers.")
    check_shape(array, what, shape, fix=fix)
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise ArrayError(f"{what}: NaN or infinity in {name_rows(rows)}; expected finite numbers.")
    return array


def as_colors(value: object, what: str, shape: Sequence[int | str], *, fix: str = "") -> np.ndarray:
    """Return colors as uint8, 0 to 255; the arguments are those of :func:`as_array`."""
    array = _read(value, what)
    if array.dtype != np.uint8:
        raise ArrayError(f"{what} of type {array.dtype}: expected uint8, colors from 0 to 255.")
    check_shape(array, what, shape, fix=fix)
    return array


def as_mask(value: object, what: str, num: int | None) -> np.ndarray:
    """Return a mask, bool (num,), or of any length if ``num`` is None; integers, which are indices, are refused."""
    array = _read(value, what)
    if array.dtype != np.bool_:
        raise ArrayError(
            f"{what} of type {array.dtype}: expected one bool for each environment. Fix, for environments 0 and 2 of "
            "4: np.isin(np.arange(4), [0, 2])"
        )
    check_shape(array, what, ("num_envs",) if num is None else (num,))
    return array


def as_env_indices(value: object, what: str) -> np.ndarray:
    """Return distinct indices of environments, int64 (B,), each at least 0; a mask is refused."""
    array = _read(value, what)
    if array.dtype.kind not in "iu":
        raise ArrayError(f"{what} of type {array.dtype}: expected integers. Fix, for a mask: np.flatnonzero(mask)")
    check_shape(array, what, ("B",))
    if (array < 0).any() or len(set(array.tolist())) < len(array):
        raise ArrayError(f"{what} {array.tolist()}: expected different numbers from 0.")
    return array.astype(np.int64)


def check_shape(array: np.ndarray, what: str, shape: Sequence[int | str], *, fix: str = "") -> None:
    """Raise :class:`ArrayError` if an array does not have the expected shape; see :func:`as_array`."""
    fits = [isinstance(expected, str) or size == expected for size, expected in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ArrayError(f"{what} of shape {array.shape}: expected ({sizes}).{f' Fix: {fix}' if fix else ''}")


def name_rows(rows: Sequence[int] | np.ndarray) -> str:
    """Format row indices for a message: ``row 3``, ``rows 3, 4, 7 and 20 more``."""
    named = ", ".join(str(int(row)) for row in rows[:_MAX_NAMED])
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"


def _read(value: object, what: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise ArrayError(f"{what} as a masked array: expected plain numbers. Fix: array.filled(…)")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ArrayError(
            f"{what} cannot be read as an array: {reason}. Fix, for a tensor: tensor.detach().cpu().float().numpy()"
        ) from error
    return array


def as_index(index: int, num: int, what: str) -> int:
    """Return an index into ``num`` items as 0 to ``num - 1``; negative indices count from the end.

    Raises:
        TypeError: The index is not an integer.
        IndexError: The index is out of range; Python's iteration protocol relies on this exception.
    """
    if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
        raise TypeError(f"{index!r} is not the number of an {what}: expected an integer.")
    if not -num <= index < num:
        raise IndexError(f"There is no {what} with number {index}: there are {num}.")
    return int(index) % num


def evenly_spaced(total: int, num: int) -> np.ndarray:
    """Return at most ``num`` evenly spaced indices into ``total`` items, with the first and the last; int64, sorted."""
    return np.unique(np.linspace(0, total - 1, num).round().astype(np.int64))
