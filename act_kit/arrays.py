"""Arrays that users pass in: read as numbers of a shape, or refused by name, with the row that is at fault."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.errors import ArrayError

_MAX_NAMED = 3
"""Rows that a message names."""


def as_array(value: object, what: str, shape: Sequence[int | str], *, fix: str = "") -> np.ndarray:
    """Return finite real numbers as an array of whatever numeric type they have.

    Args:
        value: An array, nested lists, or a tensor in the memory of the processor.
        what: The noun that a message begins with: ``actions``.
        shape: The expected sizes; a string stands for any size, and names it: ``("T", 4)``.
        fix: What to do if the shape is another.

    Raises:
        ArrayError: It is something else, of another shape, or holds NaN or infinity; the message names the rows.
    """
    array = _read(value, what)
    if array.dtype.kind not in "fiu":
        raise ArrayError(f"{what} of type {array.dtype}: expected real numbers.")
    check_shape(array, what, shape, fix=fix)
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise ArrayError(f"{what}: NaN or infinity in {name_rows(rows)}; expected finite numbers.")
    return array


def as_bytes(value: object, what: str, shape: Sequence[int | str], *, fix: str = "") -> np.ndarray:
    """Return colors from 0 to 255, uint8; otherwise as :func:`as_array`."""
    array = _read(value, what)
    if array.dtype != np.uint8:
        raise ArrayError(f"{what} of type {array.dtype}: expected uint8, colors from 0 to 255.")
    check_shape(array, what, shape, fix=fix)
    return array


def as_mask(value: object, what: str, num: int | None) -> np.ndarray:
    """Return a mask, bool (num,), or of any length if ``num`` is None; integers are refused, for they are indices."""
    array = _read(value, what)
    if array.dtype != np.bool_:
        raise ArrayError(
            f"{what} of type {array.dtype}: expected one bool for each environment. Fix, for environments 0 and 2 of "
            "4: np.isin(np.arange(4), [0, 2])"
        )
    check_shape(array, what, ("num_envs",) if num is None else (num,))
    return array


def as_row_numbers(value: object, what: str) -> np.ndarray:
    """Return the numbers of environments, int64 (B,), from 0, none of them twice; a mask is refused."""
    array = _read(value, what)
    if array.dtype.kind not in "iu":
        raise ArrayError(f"{what} of type {array.dtype}: expected integers. Fix, for a mask: np.flatnonzero(mask)")
    check_shape(array, what, ("B",))
    if (array < 0).any() or len(set(array.tolist())) < len(array):
        raise ArrayError(f"{what} {array.tolist()}: expected different numbers from 0.")
    return array.astype(np.int64)


def check_shape(array: np.ndarray, what: str, shape: Sequence[int | str], *, fix: str = "") -> None:
    """Raise :class:`ArrayError` unless an array has the expected shape; see :func:`as_array`."""
    fits = [isinstance(wanted, str) or size == wanted for size, wanted in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ArrayError(f"{what} of shape {array.shape}: expected ({expected}).{f' Fix: {fix}' if fix else ''}")


def name_rows(rows: Sequence[int] | np.ndarray) -> str:
    """Name some rows in a message: ``row 3``, ``rows 3, 4, 7 and 20 more``."""
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
    """Return the number, from 0, of one of ``num`` things; negative ones count from the end.

    Raises:
        TypeError, IndexError: It is no integer, or there is no such thing; what iterates relies on these.
    """
    if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
        raise TypeError(f"{index!r} is not the number of an {what}: expected an integer.")
    if not -num <= index < num:
        raise IndexError(f"There is no {what} with number {index}: there are {num}.")
    return int(index) % num
