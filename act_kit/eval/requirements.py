"""Requirements for continuous integration: limits on quantities of an evaluation, such as ``success_lower>=0.8``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from act_kit.errors import ConfigError, did_you_mean
from act_kit.eval.results import Evaluation

QUANTITIES: dict[str, Callable[[Evaluation], float]] = {
    "success": lambda e: e.success.value,
    "success_lower": lambda e: e.success.interval[0],
    "success_upper": lambda e: e.success.interval[1],
    "success_at_end": lambda e: e.success_at_end.value,
    "success_at_end_lower": lambda e: e.success_at_end.interval[0],
    "success_at_end_upper": lambda e: e.success_at_end.interval[1],
    "min_distance": lambda e: e.mean_distance("min"),
    "final_distance": lambda e: e.mean_distance("final"),
    "closed_distance_fraction": lambda e: e.closed_distance_fraction,
    "largest_z": lambda e: math.nan if e.largest_z is None else e.largest_z,
    "clip_fraction": lambda e: e.clip_fraction,
    "crashes": lambda e: float(len(e.crashes)),
}
"""Quantities of requirements, by name: fractions, meters (radians for lever-pull), standard deviations, episodes."""

_FRACTIONS = ("success", "clip_fraction")
"""Prefixes of the quantities between 0 and 1."""

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Requirement:
    """A limit on a quantity: ``relation`` (one of >=, <=, >, <) must hold between ``quantity`` and ``limit``."""

    quantity: str
    relation: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Parse a requirement such as ``success_lower>=0.8``.

        Raises:
            ConfigError: The text has another form, the quantity is unknown, or the limit is outside its range.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
        try:
            quantity, relation, number = match.groups() if match else ("", "", "")
            limit = float(number)
        except ValueError as error:
            raise ConfigError(f"'{text}' is not a requirement. Fix: --require \"success_lower>=0.8\".") from error
        if quantity not in QUANTITIES:
            hint = did_you_mean(quantity, QUANTITIES)
            known = ", ".join(QUANTITIES)
            raise ConfigError(f"'{quantity}' is not a quantity of an evaluation; choose from: {known}.{hint}")
        is_fraction = quantity.startswith(_FRACTIONS)
        if not math.isfinite(limit) or (is_fraction and not 0 <= limit <= 1):
            expected = "between 0 and 1" if is_fraction else "finite"
            raise ConfigError(f"'{text}': {quantity} is {expected}. Fix: --require \"success_lower>=0.8\".")
        return cls(quantity, relation, limit)

    def check(self, evaluation: Evaluation) -> tuple[bool, str]:
        """Return True if an evaluation meets the requirement, and a line with the numbers."""
        value = QUANTITIES[self.quantity](evaluation)
        passed = bool(_OPERATORS[self.relation](value, self.limit))
        shown = f"{value:.4g}"
        if float(shown) == self.limit:  # rounded, it may contradict the result
            shown = _in_full(value)
        comparison = f"{self.quantity} = {shown}, required {self.relation} {_in_full(self.limit)}"
        return passed, f"{'PASS' if passed else 'FAIL'} {evaluation.task}: {comparison}"


def _in_full(number: float) -> str:
    """Return a number with all its digits, and no more."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))
