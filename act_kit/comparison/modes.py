"""Modes of a method's training seeds: if some succeed and some collapse, their mean describes neither.

See :func:`act_kit.statistics.split_bimodal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from act_kit import statistics
from act_kit.comparison.experiments import Method
from act_kit.statistics import GAP, Estimate, MacroAverageRate, percent

_BOUND = 0.1
"""Fraction of collapsing seeds that a user may want to rule out."""

_SOURCE = "Clopper–Pearson, 95 %"


def bimodal_modes(method: Method) -> tuple[list[float], list[float]] | None:
    """Split the success rates of bimodal seeds into the lower and the upper mode; None if they are not bimodal."""
    return statistics.split_bimodal(method.rates)


def mean_of(method: Method) -> Estimate:
    """Return the mean success of a method's seeds, or that of its only checkpoint."""
    if len(method.seeds) > 1:
        return statistics.seeds_mean(list(map(method.successes, method.tasks)))
    rate = MacroAverageRate(tuple(evaluation.success for evaluation in method.seeds[0].tasks.values()))
    low, high = rate.interval or (0.0, 1.0)
    return Estimate(value=rate.value, low=low, high=high)


def describe_modes(method: Method) -> str:
    """Describe the modes of a method's seeds, and bound the fraction of seeds of an unseen mode; "" for one seed.

    A mean and its interval describe new seeds only if these belong to the observed mode.
    """
    num, rates, modes = len(method.seeds), method.rates, bimodal_modes(method)
    if num < 2:
        return ""
    if modes:
        worse, better = modes
        low, high = statistics.share_interval(len(worse), num)
        return (
            f"The seeds of {method.label} are bimodal, {len(worse)} at {_span(worse)} and {len(better)} at "
            f"{_span(better)}: their mean describes neither mode. {len(worse)} of {num} collapsed: {100 * low:.0f} to "
            f"{100 * high:.0f} % of new seeds may collapse ({_SOURCE}). Mean of each mode: "
            f"{_mean(worse)} % and {_mean(better)} %."
        )
    if max(rates) - min(rates) >= GAP:
        return (
            f"The {num} seeds of {method.label} range from {_span(rates)} without two separate modes: read each of "
            "them, not their mean."
        )
    share = f"up to {100 * statistics.largest_unseen_share(num):.0f} % of new seeds may"
    needed = statistics.seeds_to_bound(_BOUND)
    source = f"{_SOURCE}; {needed} such seeds would bound it at {100 * _BOUND:.0f} %" if num < needed else _SOURCE
    if max(rates) < GAP:
        return (
            f"All {num} seeds of {method.label} have a low success rate, but {share} belong to another mode ({source})."
        )
    return f"None of the {num} seeds of {method.label} collapsed, but {share} collapse ({source})."


def modes_to_dict(method: Method) -> dict[str, Any] | None:
    """Return the content of :func:`describe_modes` as plain values; None for one seed."""
    num, modes = len(method.seeds), bimodal_modes(method)
    if num < 2:
        return None
    if not modes:
        return {"num": num, "collapsed": None, "largest_unseen_share": statistics.largest_unseen_share(num)}
    low, high = statistics.share_interval(len(modes[0]), num)
    collapsed = {"num": len(modes[0]), "low": low, "high": high}
    return {"num": num, "collapsed": collapsed, "means": [float(np.mean(mode)) for mode in modes]}


def success_text(method: Method, mean: float) -> str:
    """Return the success of a method: its mean, or that of each mode of its seeds."""
    modes, num = bimodal_modes(method), len(method.seeds)
    if modes is None:
        return f"{percent(mean, 1)} %"
    return " and ".join(f"{_mean(mode)} % ({len(mode)} of {num} seeds)" for mode in modes)


def _mean(rates: Sequence[float]) -> str:
    return percent(float(np.mean(rates)), 1)


def _span(rates: Sequence[float]) -> str:
    low, high = percent(min(rates)), percent(max(rates))
    return f"{low} %" if low == high else f"{low} to {high} %"
