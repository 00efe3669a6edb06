"""Texts made of values: lists in messages and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def name_values(values: Mapping[Any, object]) -> str:
    """Return a mapping as ``name value, name value``."""
    return ", ".join(map("{} {}".format, values.keys(), values.values()))
