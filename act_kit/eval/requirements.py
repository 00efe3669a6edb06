"""Gates for continuous integration: quantities of an evaluation that must be at least, or at most, what is asked."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from act_kit.errors import ConfigError, did_you_mean
from act_kit.eval.evaluate import Evaluation

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
    "largest_z": lambda e: e.largest_z,
    "clip_fraction": lambda e: e.clip_fraction,
    "crashes": lambda e: float(len(e.crashes)),
}
"""What a gate can ask about: fractions, metres (radians for lever-pull), standard deviations, episodes."""

_FRACTIONS = ("success", "clip_fraction")
"""Beginnings of the quantities that lie between 0 and 1."""

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Requirement:
    """``quantity`` must stand in ``relation`` (one of >=, <=, >, <) to ``limit``."""

    quantity: str
    relation: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read ``success_lower>=0.8``.

        Raises:
            ConfigError: It is not of this form, there is no such quantity, or it cannot have this value.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
        try:
            quantity, relation, limit = match.groups() if match else ("", "", "")
            require = cls(quantity, relation, float(limit))
        except ValueError as error:
            raise ConfigError(f"'{text}' is not a gate. Write --require \"success_lower>=0.8\".") from error
        if quantity not in QUANTITIES:
            raise ConfigError(
                f"'{quantity}' is not something a gate can ask about; there are {', '.join(QUANTITIES)}."
                + did_you_mean(quantity, QUANTITIES)
            )
        if not math.isfinite(require.limit) or (quantity.startswith(_FRACTIONS) and not 0 <= require.limit <= 1):
            between = "between 0 and 1" if quantity.startswith(_FRACTIONS) else "finite"
            raise ConfigError(
                f"'{text}' asks for {require.limit:g}: {quantity} is {between}. Fix: \"success_lower>=0.8\"."
            )
        return require

    def check(self, evaluation: Evaluation) -> tuple[bool, str]:
        """Return whether an evaluation passes, and that in a line with the numbers."""
        value = QUANTITIES[self.quantity](evaluation)
        passed = bool(_OPERATORS[self.relation](value, self.limit))
        word = "PASS" if passed else "FAIL"
        line = f"{word} {evaluation.init_state_set.task}: {self.quantity} = {value:.4g}, asked for {self.relation} {self.limit:g}"
        return passed, line
