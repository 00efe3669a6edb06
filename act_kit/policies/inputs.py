"""Checks of what users pass to a policy: states, the task of each row, images.

The observations of Meta-World's multi-task benchmarks are states followed by a one-hot vector of the task:
``gym.make_vec("Meta-World/MT10", use_one_hot=True)`` returns 39 + 10 numbers, MT25 39 + 25 and MT50 39 + 50. The tasks
are in the benchmark's order, which is not alphabetical.

Shapes: B rows, S numbers of an observation, C cameras, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.arrays import as_array, as_colors, check_shape, name_rows
from act_kit.errors import ArrayError
from act_kit.policies.metadata import PolicyMetadata
from act_kit.sim.render import CameraViews
from act_kit.sim.tasks import STATE_DIM, benchmark_tasks

Tasks = Sequence[str] | np.ndarray
"""Task of each row: names, or indices into the policy's tasks."""

_BENCHMARKS = {10: "MT10", 25: "MT25", 50: "MT50"}
"""Benchmarks by their number of tasks."""


def check_states(
    observations: object,
    tasks: Tasks | None,
    metadata: PolicyMetadata,
    fixed_task: int | None,
    *,
    recognizes_task: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the states (B, 39) and the index of each row's task, int64 (B,).

    The task is that of ``tasks``, ``fixed_task``, or the one-hot vectors; if several are given, they must agree. A
    policy that recognizes its task reads none of them, and the indices are 0.

    Raises:
        ArrayError: A shape or type is wrong, numbers are not finite, the goal is hidden, or a task is not known.
    """
    states, one_hot_tasks = split_observations(observations)
    hidden = np.flatnonzero(~states[:, -3:].any(axis=1))
    if metadata.goal_visible and len(hidden):
        raise ArrayError(
            f"The states in {name_rows(hidden)} hide the goal (their last three numbers are 0), but the policy was "
            "trained to see it. Fix: make the environment fully observable, env._partially_observable = False."
        )
    if recognizes_task:
        return states, np.zeros(len(states), dtype=np.int64)
    from_states = None if one_hot_tasks is None else _task_indices(one_hot_tasks, metadata.tasks)
    given = None if tasks is None else _task_indices(tasks, metadata.tasks)
    if given is None and fixed_task is not None:
        given = np.full(len(states), fixed_task)
    if given is None and from_states is None:
        raise ArrayError(
            f"This policy was trained on {len(metadata.tasks)} tasks ({', '.join(metadata.tasks)}), and states of "
            f"{STATE_DIM} numbers do not name the task. Fix: policy.act(states, tasks=[…]) with the name of each row's "
            "task, or observations with Meta-World's one-hot task (use_one_hot=True); policy.for_task(…) only where "
            "every row is of that task."
        )
    if given is None:
        assert from_states is not None
        return states, from_states
    check_shape(given, "tasks", (len(states),))
    if from_states is not None and (given != from_states).any():
        wrong = np.flatnonzero(given != from_states)
        raise ArrayError(
            f"The one-hot task in {name_rows(wrong)} is {metadata.tasks[from_states[wrong[0]]]}, but the policy is set "
            f"to {metadata.tasks[given[wrong[0]]]}: expected the same task."
        )
    return states, given


def _task_indices(given: Tasks, tasks: Sequence[str]) -> np.ndarray:
    """Return the indices, int64 (B,), of tasks given by name or by index."""
    array = np.asarray(list(given))
    if array.dtype.kind == "U":
        check_shape(array, "tasks", ("B",))
        unknown = np.flatnonzero(~np.isin(array, tasks))
        if len(unknown):
            raise ArrayError(
                f"The task in {name_rows(unknown)} is {array[unknown[0]]}: expected one that this policy was trained "
                f"on, {', '.join(tasks)}."
            )
        return np.array([tasks.index(task) for task in array.tolist()], dtype=np.int64)
    indices = as_array(array, "tasks", ("B",))
    if indices.dtype.kind == "f" or not np.isin(indices, np.arange(len(tasks))).all():
        raise ArrayError(f"tasks {array.tolist()}: expected names of tasks, or integers from 0 to {len(tasks) - 1}.")
    return indices.astype(np.int64)


def split_observations(observations: object) -> tuple[np.ndarray, list[str] | None]:
    """Split observations (B, S) into states (B, 39) and the task names of their one-hot vectors (None without them).

    Raises:
        ArrayError: The observations are not finite numbers of a supported shape, or a vector is not one-hot.
    """
    array = as_array(observations, "states", ("B", "S"), fix="state[None] makes a batch of one state")
    size = array.shape[1] - STATE_DIM
    if size == 0:
        return array, None
    if size not in _BENCHMARKS:
        raise ArrayError(
            f"The policy expects states (B, {STATE_DIM}), or states followed by a benchmark's one-hot task, (B, 49), "
            f"(B, 64) or (B, 89) for MT10, MT25 or MT50, not {array.shape}. Fix, for another one-hot: "
            f"policy.act(states[:, :{STATE_DIM}], tasks=[…]), with the task name of each row."
        )
    states, vectors = array[:, :STATE_DIM], array[:, STATE_DIM:]
    num_ones, num_zeros = (vectors == 1).sum(axis=1), (vectors == 0).sum(axis=1)
    wrong = np.flatnonzero((num_ones != 1) | (num_zeros != size - 1))
    if len(wrong):
        raise ArrayError(
            f"The last {size} numbers of {name_rows(wrong)} are {vectors[wrong[0]].tolist()}: expected a one-hot "
            f"vector of {_BENCHMARKS[size]}, with one 1 and {size - 1} zeros."
        )
    names = np.array(benchmark_tasks(_BENCHMARKS[size]))
    return states, names[vectors.argmax(axis=1)].tolist()


def check_images(images: np.ndarray | None, num_rows: int, views: CameraViews | None) -> np.ndarray | None:
    """Return images, uint8 (B, C, H, W, 3), or None for a policy without cameras.

    Raises:
        ArrayError: The images are missing, of another shape or type, or the policy has no cameras.
    """
    if views is None:
        if images is not None:
            raise ArrayError("This policy acts on states only: expected no images.")
        return None
    shape = (num_rows, len(views.cameras), views.settings.height_px, views.settings.width_px, 3)
    expected = f"The policy expects images of {', '.join(views.cameras)} at {views.settings} px, uint8 {shape}"
    if images is None:
        raise ArrayError(f"{expected}, not none.")
    given = np.shape(images)
    if given == (*shape[:2], 3, *shape[2:4]):
        raise ArrayError(f"{expected}, not channels first, {given}. Fix: images.transpose(0, 1, 3, 4, 2)")
    if given[1:] == shape[1:] and given != shape:
        raise ArrayError(f"{expected}, not {given[0]} rows: expected one row of images for each state.")
    return as_colors(images, f"{expected}. Given images", shape)
