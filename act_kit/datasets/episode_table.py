"""What is known of each episode of a dataset, in columns, and choosing episodes by an expression over them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from act_kit.datasets.expressions import Columns, ExpressionError, compile_expression
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.quality import Motion, measure_motion
from act_kit.errors import ConfigError, did_you_mean
from act_kit.sim.initial_states import number_distinct
from act_kit.sim.tasks import TASKS


def columns_of(store: EpisodeStore, seed: int = 0) -> Columns:
    """Return what is known of each episode of a dataset.

    ====================  ==============================================================================================
    episode               Its number, from 0.
    steps                 Its length.
    task                  Its dataset's.
    source                Who demonstrated.
    succeeded             Whether it ever did.
    success_step          The first step that did.
    final_distance        After the last step; metres (radians for lever-pull).
    path_efficiency …     See :class:`~act_kit.diversity.quality.Quality`: path_efficiency, idle_fraction,
                          clipped_fraction, jerk, gripper_switches.
    object_x …            Its start, metres: object_x to goal_z, as far as the task has them; start_0 … elsewhere.
    first_of_its_start    Whether no episode before it has the same start.
    random                In [0, 1), the same for the same start: the n distinct starts, shuffled by ``seed``, have 0/n,
                          1/n, … So ``random < 0.8`` is 80 % of the starts. Without starts, each episode counts as one.
    ====================  ==============================================================================================

    What was not recorded has no column. What an episode does not have (the success step of a failure) is NaN: every
    comparison with it is false, also ``!=``.
    """
    columns: dict[str, list[Any]] = {
        "episode": list(range(store.num_episodes)),
        "steps": store.episode_lengths.tolist(),
        "task": [store.info.task] * store.num_episodes,
        "source": store.sources,
    }
    if "success" in store.fields:
        steps = store.success_steps
        columns |= {
            "succeeded": (steps >= 0).tolist(), "success_step": np.where(steps >= 0, steps, math.nan).tolist(),
        }  # fmt: skip
    if "distance" in store.fields:
        columns["final_distance"] = store.steps("distance")[store.episode_ends - 1].tolist()
    if store.is_of_metaworld:
        parts = (np.split(store.steps(name), store.episode_ends[:-1]) for name in ("state", "action"))
        motions = [asdict(measure_motion(*part)) for part in zip(*parts, strict=True)]
        for field in fields(Motion):
            values = [motion[field.name] for motion in motions]
            columns[field.name] = [math.nan if value is None else value for value in values]
    numbers = np.arange(store.num_episodes)
    if store.has_init_states:
        init_states = store.rand_vecs
        task = TASKS.get(store.info.task)
        for dim in range(init_states.shape[1]):
            name = task.dim_name(dim).replace(" ", "_") if task else f"start_{dim}"
            columns[name] = init_states[:, dim].tolist()
        numbers = number_distinct(init_states)
        columns["first_of_its_start"] = (np.diff(np.maximum.accumulate(numbers), prepend=-1) > 0).tolist()
    num = int(numbers.max(initial=-1)) + 1
    columns["random"] = (np.random.default_rng(seed).permutation(num)[numbers] / max(1, num)).tolist()
    return columns


def choose(columns: Columns, where: str) -> np.ndarray:
    """Return the episodes, int64, for which an expression over their columns is true.

    See :mod:`act_kit.datasets.expressions` for the language.

    Raises:
        ConfigError: It is not such an expression, or divides by zero for some episode.
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
            f"{' '.join(shown.split())!r} is not an expression over the columns of an episode: {error}. Write, for "
            f"example, --where 'steps < 100 and source == \"scripted\"'. The columns are {', '.join(columns)}."
            f"{did_you_mean(name[1], columns) if name else ''}"
        ) from error
