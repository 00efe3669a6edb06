"""Observations of Meta-World's multi-task benchmarks: each state is followed by a one-hot vector of its task.

``gym.make_vec("Meta-World/MT10", use_one_hot=True)`` returns 39 + 10 numbers, MT25 39 + 25 and MT50 39 + 50. The tasks
are in the benchmark's order, which is not alphabetical.
"""

from __future__ import annotations

import functools

import numpy as np

from act_kit.arrays import as_array, name_rows
from act_kit.errors import ArrayError
from act_kit.sim.tasks import STATE_DIM

_SIZES = {10: "MT10", 25: "MT25", 50: "MT50"}
"""Names of the benchmarks by their number of tasks."""


@functools.cache
def benchmark_tasks(benchmark: str) -> tuple[str, ...]:
    """Return the tasks of MT10, MT25 or MT50, in the order of the one-hot vector."""
    from metaworld import env_dict  # a caller with such an observation has already imported it

    return tuple(getattr(env_dict, f"{benchmark}_V3"))


def split_observations(observations: object) -> tuple[np.ndarray, list[str] | None]:
    """Split observations (B, S) into states (B, 39) and the task names of their one-hot vectors (None without them).

    Raises:
        ArrayError: The observations are not finite numbers of a supported shape, or a vector is not one-hot.
    """
    array = as_array(observations, "states", ("B", "S"), fix="state[None] makes a batch of one state")
    size = array.shape[1] - STATE_DIM
    if size and size not in _SIZES:
        raise ArrayError(
            f"The policy expects states (B, {STATE_DIM}), or states followed by a benchmark's one-hot task, (B, 49), "
            f"(B, 64) or (B, 89) for MT10, MT25 or MT50, not {array.shape}. Fix, for another one-hot: "
            f"policy.act(states[:, :{STATE_DIM}], tasks=[…]), with the task name of each row."
        )
    states, vectors = array[:, :STATE_DIM], array[:, STATE_DIM:]
    if not size:
        return states, None
    num_ones, num_zeros = (vectors == 1).sum(axis=1), (vectors == 0).sum(axis=1)
    wrong = np.flatnonzero((num_ones != 1) | (num_zeros != size - 1))
    if len(wrong):
        raise ArrayError(
            f"The last {size} numbers of {name_rows(wrong)} are {vectors[wrong[0]].tolist()}: expected a one-hot "
            f"vector of {_SIZES[size]}, with one 1 and {size - 1} zeros."
        )
    names = benchmark_tasks(_SIZES[size])
    return states, [names[number] for number in vectors.argmax(axis=1)]
