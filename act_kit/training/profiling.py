"""How fast a step could be: its arithmetic, counted, against the rate at which the device multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

_SIDE = {"cpu": 1536, "cuda": 8192}
_REPEATS = 5


def count_flops(step: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products, convolutions and attentions that ``step`` does."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of large matrix products of ``dtype``: the best of a few. Takes nothing from torch's generator."""
    side = _SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(_REPEATS):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best
