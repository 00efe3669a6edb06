"""Whether saved tensors are those of a network: all of them, no others, of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say how many tensors of ``own`` can be taken from ``given`` and the first that cannot; "" if all fit."""
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    if not (missing or unknown or misshapen):
        return ""
    return (
        f"{len(own.keys() & given.keys()) - len(misshapen)} of {len(own)} tensors can be loaded. Missing: "
        f"{missing[:3]}; unknown: {unknown[:3]}; of another shape: {misshapen[:3]}."
    )
