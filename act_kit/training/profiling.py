"""Roofline of a gradient step: its floating-point operations and the peak rate of the device's matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

_SIDE = {"cpu": 1536, "cuda": 8192}
_REPEATS = 5


def count_flops(step: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products, convolutions and attention in ``step``."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of a few large matrix products of ``dtype``. Leaves torch's generator unchanged."""
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
