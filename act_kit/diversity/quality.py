"""Task-independent quality measures of demonstrations, per source.

They do not affect the verdict, since good values depend on the task. The report lists the values of scripted experts
for comparison.

Shapes: T steps of an episode, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.distance import cdist

from act_kit.diversity.reference import count_distinct
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.motion import Motion, measure_motion
from act_kit.sim.initial_states import stack

_MAX_STEPS = 2000
"""Number of steps for which nearest states are searched."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of one source's demonstrations: medians over its episodes unless stated otherwise; None if undefined.

    Attributes:
        source: Demonstrator.
        num, num_distinct: Number of episodes and of their distinct initial states.
        steps, steps_least, steps_most: Median, minimum and maximum length of an episode.
        path_efficiency: Distance between the first and the last position of the hand / length of its path.
        idle_fraction: Share of steps in which the hand moves less than 0.2 mm and the gripper command is constant.
        clipped_fraction: Share of steps whose action is at its limit in x, y or z.
        jerk: Root mean square of the third derivative of the hand's position, m/s³.
        gripper_switches: Number of steps at which the gripper command jumps by more than 0.5.
        duplicate_trajectories: Share of episodes whose actions equal those of an earlier episode (bit-exact).
        action_variance: Half the mean squared difference of actions in similar states / variance of the actions, over
            the 5 % of steps with the most similar states in other episodes. 0: the state determines the action; 1: it
            is independent of it.
    """

    source: str
    num: int
    num_distinct: int
    steps: float
    steps_least: int
    steps_most: int
    path_efficiency: float | None
    idle_fraction: float
    clipped_fraction: float
    jerk: float | None
    gripper_switches: float
    duplicate_trajectories: float
    action_variance: float | None


def measure_quality(episodes: Sequence[Episode]) -> list[Quality]:
    """Measure the quality of demonstrations per source. Episodes with values that are not finite are ignored."""
    by_source: dict[str, list[Episode]] = {}
    for episode in episodes:
        values = np.concatenate([episode.init_state.array, episode.state.ravel(), episode.action.ravel()])
        if np.isfinite(values).all():
            by_source.setdefault(episode.source, []).append(episode)
    return [_measure(source, finite) for source, finite in by_source.items()]


def _measure(source: str, episodes: Sequence[Episode]) -> Quality:
    motions = [measure_motion(episode.state, episode.action) for episode in episodes]
    lengths = [len(episode) for episode in episodes]

    def median(name: str) -> float | None:
        values = [value for motion in motions if (value := getattr(motion, name)) is not None]
        return float(np.median(values)) if values else None

    return Quality(
        source=source,
        num=len(episodes),
        num_distinct=count_distinct(stack([episode.init_state for episode in episodes])),
        steps=float(np.median(lengths)),
        steps_least=min(lengths),
        steps_most=max(lengths),
        **{field.name: median(field.name) for field in fields(Motion)},  # type: ignore[arg-type]
        duplicate_trajectories=1 - len({episode.action.tobytes() for episode in episodes}) / len(episodes),
        action_variance=_action_variance(episodes),
    )


def _action_variance(episodes: Sequence[Episode]) -> float | None:
    owner = np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])
    states = np.concatenate([episode.state for episode in episodes])
    actions = np.concatenate([episode.action for episode in episodes])
    chosen = np.random.default_rng(0).permutation(len(owner))[:_MAX_STEPS]
    owner, states, actions = owner[chosen], states[chosen], actions[chosen].astype(np.float64)
    varying = states.std(axis=0) > 1e-6
    variance = actions.var(axis=0).sum()
    if len(set(owner.tolist())) < 2 or not varying.any() or variance < 1e-9:
        return None
    states = states[:, varying] / states[:, varying].std(axis=0)
    distances = cdist(states, states)
    distances[owner[:, None] == owner] = np.inf
    nearest = distances.argmin(axis=1)
    nearest_distance = distances[np.arange(len(nearest)), nearest]
    similar = np.argsort(nearest_distance)[: max(1, len(nearest_distance) // 20)]
    half = ((actions[similar] - actions[nearest[similar]]) ** 2).sum(axis=1).mean() / 2
    return float(half / variance)
