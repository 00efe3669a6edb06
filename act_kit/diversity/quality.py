"""How well it was demonstrated: what can be seen of a demonstration without knowing its task, by who demonstrated.

Nothing here decides the verdict: what is good depends on the task. Beside each figure stands what scripted experts do.

Shapes: T steps of an episode, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.distance import cdist

from act_kit.diversity.reference import count_distinct
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import stack
from act_kit.sim.tasks import CONTROL_HZ

_IDLE_M = 2e-4
"""A step in which the hand moves less: 2 % of what one action can ask for."""
_CLIPPED = 0.999
_SWITCH = 0.5
_MOST_STEPS = 2000
"""Of them, nearest states are looked for."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One source's demonstrations; medians over its episodes, where not said otherwise. None where it cannot be told.

    Attributes:
        source: Who demonstrated.
        num, num_distinct: Episodes, and the distinct starts among them.
        steps, steps_least, steps_most: Length of an episode.
        path_efficiency: Of the hand: the straight line from its first to its last position / the way it took.
        idle_fraction: Steps in which the hand moves less than 0.2 mm and the gripper's command stays.
        clipped_fraction: Steps whose action is at its limit in x, y or z.
        jerk: Root mean square of the third derivative of the hand's position, m/s³.
        gripper_switches: Steps at which the gripper's command jumps by more than 0.5.
        duplicate_trajectories: Of the episodes, those whose actions repeat an earlier one's to the bit.
        action_variance: Of the twentieth of steps that have the most similar states in other episodes: half the mean
            squared difference of their actions / the variance of actions. 0: the state says what to do; 1: it says
            nothing.
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


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How one demonstration moved: what :class:`Quality` takes the medians of. None where it cannot be told."""

    path_efficiency: float | None
    idle_fraction: float
    clipped_fraction: float
    jerk: float | None
    gripper_switches: int


def measure_motion(state: np.ndarray, action: np.ndarray) -> Motion:
    """Measure one demonstration in Meta-World: states (T, 39) and actions (T, 4)."""
    hand = state[:, :3]
    moves = np.linalg.norm(np.diff(hand, axis=0), axis=1)
    way, stays = moves.sum(), np.abs(np.diff(action[:, 3])) < 1e-3
    return Motion(
        path_efficiency=float(np.linalg.norm(hand[-1] - hand[0]) / way) if way > 1e-3 else None,
        idle_fraction=float(((moves < _IDLE_M) & stays).mean()) if len(moves) else 0.0,
        clipped_fraction=float((np.abs(action[:, :3]) >= _CLIPPED).any(axis=1).mean()),
        jerk=_rms(np.diff(hand, n=3, axis=0) * CONTROL_HZ**3) if len(hand) > 3 else None,
        gripper_switches=int((np.abs(np.diff(action[:, 3])) > _SWITCH).sum()),
    )


def measure_quality(episodes: Sequence[Episode]) -> list[Quality]:
    """Measure demonstrations, source by source. Episodes with numbers that are not finite are left out."""
    whole = [e for e in episodes if all(np.isfinite(part).all() for part in (e.init_state.array, e.state, e.action))]
    sources = dict.fromkeys(episode.source for episode in whole)
    return [_measure(source, [e for e in whole if e.source == source]) for source in sources]


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


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).sum(axis=-1).mean()))


def _action_variance(episodes: Sequence[Episode]) -> float | None:
    owner = np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])
    states, actions = (np.concatenate([getattr(e, name) for e in episodes]) for name in ("state", "action"))
    chosen = np.random.default_rng(0).permutation(len(owner))[:_MOST_STEPS]
    owner, states, actions = owner[chosen], states[chosen], actions[chosen].astype(np.float64)
    varying = states.std(axis=0) > 1e-6
    variance = actions.var(axis=0).sum()
    if len(set(owner.tolist())) < 2 or not varying.any() or variance < 1e-9:
        return None
    states = states[:, varying] / states[:, varying].std(axis=0)
    distances = cdist(states, states)
    distances[owner[:, None] == owner] = np.inf
    nearest = distances.argmin(axis=1)
    apart = distances[np.arange(len(nearest)), nearest]
    similar = np.argsort(apart)[: max(1, len(apart) // 20)]
    half = ((actions[similar] - actions[nearest[similar]]) ** 2).sum(axis=1).mean() / 2
    return float(half / variance)
