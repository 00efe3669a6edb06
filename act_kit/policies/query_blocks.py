"""Blocks of observations, in which a policy predicts: always of the same size.

Shapes: B rows, S numbers of a state, C cameras, H and W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from act_kit.policies.chunk_model import Observation
from act_kit.policies.normalizer import Normalizer

QUERY_BATCH_SIZE = {"cpu": 16, "cuda": 128}
"""Number of rows in the fixed-size blocks that observations are predicted in, by device.

Matrix products of one shape compute a row to the same bits at every place in the block and next to any other rows;
products of different shapes do not (observed and tested on the CPU). Therefore no evaluation result depends on how many
environments are queried together.
"""


def make_blocks(
    normalizer: Normalizer,
    device: torch.device,
    states_BS: np.ndarray,
    tasks_B: np.ndarray,
    images_BCHW3: np.ndarray | None,
    first_states_BS: np.ndarray | None,
) -> Iterator[tuple[Observation, int]]:
    """Yield blocks of the inputs of a model, and the number of rows of each that are given; the others are zeros."""
    size = QUERY_BATCH_SIZE[device.type]
    for begin in range(0, len(states_BS), size):
        rows = slice(begin, begin + size)
        raw_states = _pad(states_BS[rows].astype(np.float32), size, device)
        first_states = None
        if first_states_BS is not None:
            first_states = normalizer(_pad(first_states_BS[rows].astype(np.float32), size, device))
        observation = Observation(
            states_BS=normalizer(raw_states),
            raw_states_BS=raw_states,
            tasks_B=_pad(tasks_B[rows], size, device),
            images_BCHW3=None if images_BCHW3 is None else _pad(images_BCHW3[rows], size, device),
            first_states_BS=first_states,
        )
        yield observation, len(states_BS[rows])


def _pad(rows: np.ndarray, size: int, device: torch.device) -> torch.Tensor:
    """Move rows to the device, padded with zeros to the size of a block."""
    on_gpu = device.type == "cuda"
    given = torch.from_numpy(np.ascontiguousarray(rows))
    block = torch.zeros((size, *given.shape[1:]), dtype=given.dtype, pin_memory=on_gpu)
    block[: len(given)] = given
    return block.to(device, non_blocking=on_gpu)
