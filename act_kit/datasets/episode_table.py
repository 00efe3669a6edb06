"""A table with one row per episode of a dataset, and the selection of episodes by an expression over its columns."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from act_kit.datasets.expressions import Columns, ExpressionError, compile_expression
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, did_you_mean
from act_kit.rollouts.motion import Motion, measure_motion
from act_kit.sim.initial_states import number_distinct
from act_kit.sim.tasks import TASKS


def episode_table(store: EpisodeStore, seed: int = 0) -> dict[str, list[Any]]:
    """Return the columns of the episode table.

    =====================  =============================================================================================
    episode               Index of the episode, from 0.
    steps                 Number of steps.
    task                  Task of the dataset.
    source                Demonstrator of the episode.
    succeeded             True if any step succeeded.
    success_step          First step that succeeded.
    final_distance        Distance to success after the last step, in meters (radians for lever-pull).
    path_efficiency …     See :class:`~act_kit.diversity.quality.Quality`: path_efficiency, idle_fraction,
                          clipped_fraction, jerk, gripper_switches.
    object_x …            Initial state in meters: object_x to goal_z, as the task has them; init_state_0 … for
                          other data.
    first_with_init_state True if no earlier episode has the same initial state.
    random                In [0, 1), equal for equal initial states: the n distinct initial states, shuffled by
                          ``seed``, have 0/n, 1/n, … So ``random < 0.8`` selects 80 % of the initial states. Without
                          recorded initial states, each episode counts as a distinct one.
    =====================  =============================================================================================

    Data that was not recorded has no column. A missing value (the success step of a failure) is NaN: every comparison
    with it is false, including ``!=``.
    """
    columns: dict[str, list[Any]] = {
        "episode": list(range(store.num_episodes)),
        "steps": store.episode_lengths.tolist(),
        "task": [store.info.task] * store.num_episodes,
        "source": store.sources,
    }
    if "success" in store.fields:
        steps = store.success_steps
        columns["succeeded"] = (steps >= 0).tolist()
        columns["success_step"] = np.where(steps >= 0, steps, math.nan).tolist()
    if "distance" in store.fields:
        columns["final_distance"] = store.steps("distance")[store.episode_ends - 1].tolist()
    if store.is_metaworld:
        columns |= {field.name: [] for field in fields(Motion)}
        for states, actions in zip(store.steps_by_episode("state"), store.steps_by_episode("action"), strict=True):
            for name, value in asdict(measure_motion(states, actions)).items():
                columns[name].append(math.nan if value is None else value)
    numbers = np.arange(store.num_episodes)
    if store.has_init_states:
        init_states = store.rand_vecs
        task = TASKS.get(store.info.task)
        for dim in range(init_states.shape[1]):
            name = task.dim_name(dim).replace(" ", "_") if task else f"init_state_{dim}"
            columns[name] = init_states[:, dim].tolist()
        numbers = number_distinct(init_states)
        columns["first_with_init_state"] = (np.diff(np.maximum.accumulate(numbers), prepend=-1) > 0).tolist()
    num = int(numbers.max(initial=-1)) + 1
    columns["random"] = (np.random.default_rng(seed).permutation(num)[numbers] / max(1, num)).tolist()
    return columns


def select_episodes(columns: Columns, where: str) -> np.ndarray:
    """Return the indices, int64, of the episodes for which an expression over their columns is true.

    See :mod:`act_kit.datasets.expressions` for the language.

    Raises:
        ConfigError: ``where`` is not a valid expression, or divides by zero for an episode.
    """
    episodes = np.arange(len(columns["episode"]))
    if not len(episodes):
        return episodes
    try:
        return np.flatnonzero(compile_expression(where, columns)(episodes))
    except ExpressionError as error:
        shown = where if len(where) <= 200 else where[:199] + "…"
        name = re.match("there is no column '(.*)'$", str(error))
        raise ConfigError(
            f"{' '.join(shown.split())!r} is not an expression over the columns of an episode: {error}. Fix: write, "
            f"for example, --where 'steps < 100 and source == \"scripted\"'. The columns are {', '.join(columns)}."
            f"{did_you_mean(name[1], columns) if name else ''}"
        ) from error
