"""Texts made of values: lists in messages and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(fraction: float, digits: int = 0) -> str:
    """Return a fraction in percent, rounded; with more digits where it would be rounded to 0 % or 100 % and is not."""
    text = f"{100 * fraction:.{digits}f}"
    while 0 < fraction < 1 and float(text) in (0, 100):
        digits += 1
        text = f"{100 * fraction:.{digits}f}"
    return f"{text} %"


def name_values(values: Mapping[Any, object]) -> str:
    """Return a mapping as ``name value, name value``."""
    return ", ".join(map("{} {}".format, values.keys(), values.values()))
