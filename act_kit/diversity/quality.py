"""Task-independent quality measures of demonstrations, per source.

They do not affect the verdict, since good values depend on the task. The report lists the values of scripted experts
for comparison.

Shapes: T steps of an episode, S state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap

import numpy as np
from scipy.spatial.distance import cdist

from act_kit.diversity.integrity import all_steps
from act_kit.diversity.reference import count_distinct
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.motion import measure_motion
from act_kit.sim.initial_states import stack

_MAX_STEPS = 2000
"""Number of steps for which nearest states are searched."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of one source's demonstrations: medians over its episodes unless stated otherwise; None if undefined.

    Attributes:
        source: Demonstrator.
        num, num_distinct: Number of episodes and of their distinct initial states.
        steps, min_steps, max_steps: Median, minimum and maximum length of an episode.
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
    min_steps: int
    max_steps: int
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
    return list(starmap(_measure, by_source.items()))


def _measure(source: str, episodes: Sequence[Episode]) -> Quality:
    known: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in vars(measure_motion(episode.state, episode.action)).items():
            known.setdefault(name, []).extend(() if value is None else [value])
    medians = {name: float(np.median(values)) if values else None for name, values in known.items()}
    lengths = list(map(len, episodes))
    return Quality(
        source=source,
        num=len(episodes),
        num_distinct=count_distinct(stack([episode.init_state for episode in episodes])),
        steps=float(np.median(lengths)),
        min_steps=min(lengths),
        max_steps=max(lengths),
        **medians,  # type: ignore[arg-type]
        duplicate_trajectories=duplicate_fraction(trajectories(episodes, ("action",))),
        action_variance=_action_variance(episodes),
    )


def trajectories(episodes: Iterable[Episode], names: Sequence[str] = ("state", "action")) -> list[bytes]:
    """Return some fields of each episode as bytes, to find copies."""
    parts = []
    for episode in episodes:
        steps = episode.steps
        parts.append(b"".join(steps[name].tobytes() for name in names))
    return parts


def duplicate_fraction(parts: Sequence[bytes]) -> float:
    """Return the share of ``parts`` that equal an earlier one."""
    return 1 - len(set(parts)) / len(parts)


def _action_variance(episodes: Sequence[Episode]) -> float | None:
    owner = np.repeat(np.arange(len(episodes)), list(map(len, episodes)))
    states, actions = all_steps(episodes, "state"), all_steps(episodes, "action")
    chosen = np.random.default_rng(0).permutation(len(owner))[:_MAX_STEPS]
    owner, states, actions = owner[chosen], states[chosen], actions[chosen].astype(np.float64)
    varying = states.std(axis=0) > 1e-6
    variance = actions.var(axis=0).sum()
    if np.ptp(owner) == 0 or not varying.any() or variance < 1e-9:
        return None
    states = states[:, varying] / states[:, varying].std(axis=0)
    distances = cdist(states, states)
    distances[owner[:, None] == owner] = np.inf
    nearest = distances.argmin(axis=1)
    nearest_distance = distances[np.arange(len(nearest)), nearest]
    similar = np.argsort(nearest_distance)[: max(1, len(nearest_distance) // 20)]
    half = ((actions[similar] - actions[nearest[similar]]) ** 2).sum(axis=1).mean() / 2
    return float(half / variance)
