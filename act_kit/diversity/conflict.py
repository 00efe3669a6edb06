"""Demonstrations that go two ways which the initial state does not tell apart.

A policy trained with an L1 or L2 predicts something between two ways, and may fail where they part.

The paths of the hand are compared, not single actions: near a threshold of the state an expert acts differently from
similar states too, and does no harm by it. Paths are compared by distance traveled, up to the length of the shorter
ones, so that neither speed nor a second attempt counts as another way.

Shapes: N demonstrations, K points of a path, D varying dimensions of the initial state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from act_kit.rollouts.episode import Episode

MIN_DEMONSTRATIONS = 20
"""Number of demonstrations below which ways are not compared."""

_NUM_POINTS = 20
_MIN_GAP, _MIN_DISTANCE_M = 6.0, 0.1
"""Smallest distance of the means of two groups of paths, in standard deviations within them and in meters.

Groups of one scripted expert that the initial state does not tell apart reach 4.8 standard deviations (12, 24 or 50
demonstrations of each of the 50 tasks). The two experts of a wall task are 15 or more apart, also 20 to 5.
"""

_ALPHA = 0.05
_NUM_NEIGHBORS = 3
_NUM_PERMUTATIONS = 400

_PARTED_M = 0.02
"""Distance between the mean paths at which they have parted, in meters."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two groups of demonstrations whose paths differ, and whose initial states do not.

    Attributes:
        sizes: Number of demonstrations of each group.
        distance_m: Largest distance between the mean paths of the hand, in meters.
        gap: Distance of the groups' means along the main difference of the paths, in standard deviations within them.
        parted_at: Where the ways part: position of the hand, in meters.
        sources: Source of each group if nine in ten of its demonstrations are of one and the two differ; else None.
    """

    sizes: tuple[int, int]
    distance_m: float
    gap: float
    parted_at: tuple[float, float, float]
    sources: tuple[str, str] | None

    def __str__(self) -> str:
        names = " and ".join(map(str, self.sizes))
        if self.sources:
            names = " and ".join(f"{num} ({source})" for num, source in zip(self.sizes, self.sources, strict=True))
        x, y, z = self.parted_at
        return (
            f"the demonstrations go two ways, {names}, up to {self.distance_m:.2f} m apart, which part near "
            f"({x:.2f}, {y:.2f}, {z:.2f}), and the initial state does not tell them apart"
        )


def find_conflict(episodes: Sequence[Episode]) -> Conflict | None:
    """Divide demonstrations by the paths of the hand up to their success; None if they go one way, or are too few.

    The paths are divided in two along their first principal component. Groups that the nearest initial states share (a
    permutation test) are not a conflict. Episodes with values that are not finite are ignored.
    """
    episodes = [each for each in episodes if np.isfinite(each.state).all() and np.isfinite(each.init_state.array).all()]
    if len(episodes) < MIN_DEMONSTRATIONS:
        return None
    paths_NK3 = _paths(episodes)
    init_states = np.stack([episode.init_state.array for episode in episodes])
    varying = init_states.std(axis=0) > 1e-9
    scaled_ND = (init_states[:, varying] - init_states[:, varying].mean(axis=0)) / init_states[:, varying].std(axis=0)
    centered_NK3 = paths_NK3 - paths_NK3.mean(axis=0)
    is_second_N, gap = _divide(np.linalg.svd(centered_NK3.reshape(len(episodes), -1), full_matrices=False)[0][:, 0])
    apart_K = np.linalg.norm(paths_NK3[is_second_N].mean(axis=0) - paths_NK3[~is_second_N].mean(axis=0), axis=1)
    if gap < _MIN_GAP or apart_K.max() < _MIN_DISTANCE_M or _follows(is_second_N, scaled_ND):
        return None
    parted = int(np.argmax(apart_K > _PARTED_M))
    x, y, z = paths_NK3[:, parted].mean(axis=0).tolist()
    return Conflict(
        sizes=(int((~is_second_N).sum()), int(is_second_N.sum())),
        distance_m=float(apart_K.max()),
        gap=gap,
        parted_at=(x, y, z),
        sources=_sources_of(episodes, is_second_N),
    )


def _paths(episodes: Sequence[Episode]) -> np.ndarray:
    """Return the positions of the hand (N, K, 3) at equal distances along its way to the first success."""
    hands, traveled = [], []
    for episode in episodes:
        last = len(episode) - 1 if episode.success_step is None else episode.success_step
        hand = episode.state[: last + 1, :3]
        hands.append(hand)
        traveled.append(np.append(0.0, np.linalg.norm(np.diff(hand, axis=0), axis=1).cumsum()))
    length = np.percentile([each[-1] for each in traveled], 10)
    at = np.linspace(0.0, length, _NUM_POINTS)
    paths = np.empty((len(episodes), _NUM_POINTS, 3))
    for index, (hand, distance) in enumerate(zip(hands, traveled, strict=True)):
        for axis in range(3):
            paths[index, :, axis] = np.interp(at, distance, hand[:, axis])
    return paths


def _divide(values_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Return who is in the upper of the two groups with the least variance within them, and the gap between them."""
    order = np.argsort(values_N)
    sorted_N = values_N[order]
    num, smallest = len(sorted_N), max(3, len(sorted_N) // 10)
    cuts = range(smallest, num - smallest + 1)
    within = [sorted_N[:cut].var() * cut + sorted_N[cut:].var() * (num - cut) for cut in cuts]
    cut = cuts[int(np.argmin(within))]
    deviation = max(float(np.sqrt(min(within) / num)), 1e-12)
    is_second_N = np.zeros(num, dtype=bool)
    is_second_N[order[cut:]] = True
    return is_second_N, float(sorted_N[cut:].mean() - sorted_N[:cut].mean()) / deviation


def _follows(is_second_N: np.ndarray, scaled_ND: np.ndarray) -> bool:
    """Return True if the nearest initial states are of the same group more often than in a random division."""
    if not scaled_ND.shape[1]:
        return False
    distances = cdist(scaled_ND, scaled_ND)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :_NUM_NEIGHBORS]

    def agreement(groups_N: np.ndarray) -> float:
        return float((groups_N[nearest] == groups_N[:, None]).mean())

    rng = np.random.default_rng(0)
    random = [agreement(rng.permutation(is_second_N)) for _ in range(_NUM_PERMUTATIONS)]
    at_least = np.count_nonzero(np.array(random) >= agreement(is_second_N))
    return bool((1 + at_least) / (1 + _NUM_PERMUTATIONS) <= _ALPHA)


def _sources_of(episodes: Sequence[Episode], is_second_N: np.ndarray) -> tuple[str, str] | None:
    """Return the source of each group if nine in ten of its demonstrations are of it, and they differ."""
    names: list[str] = []
    for group_N in (~is_second_N, is_second_N):
        sources = Counter(episodes[index].source for index in np.flatnonzero(group_N).tolist())
        ((name, num),) = sources.most_common(1)
        if num >= 0.9 * group_N.sum():
            names.append(name)
    return (names[0], names[1]) if len(set(names)) == 2 else None
