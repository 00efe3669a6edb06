"""Statistics of a policy's answers: agreement with the expert's actions, and differences between repeated answers.

Shapes: E episodes, S observations of an episode, A numbers of an action, J observations, R repeated answers, D numbers
of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from act_kit.sim.engine import clip_actions

MUCH_BETTER = 0.5
"""Largest ratio of the error with a change to the error without it, and least agreement with it, that accuse."""

EXACT = (0.9, 0.3)
"""Least agreement, and largest ratio of the errors, that accuse a policy which succeeds."""

ALPHA = 0.01
"""Significance level of the agreement, divided by the number of changes that were tried."""

_LEAST_ERROR = 0.1
"""Least error of the best constant action, by which others are divided: an expert may hardly move along an axis."""

_NUM_PERMUTATIONS = 4000
NEGLIGIBLE = 1e-3
"""Difference of two answers, as a fraction of the spread among observations, up to which they are equal: rounding of
batches of another size reaches 1e-6 in float32 and 1e-2 of that in bfloat16."""


def errors(actions: np.ndarray, expert: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Return the mean absolute error of each episode (E,) over some numbers of the executed actions (E, S, A).

    Rows that are NaN in ``expert`` are left out.
    """
    mean: np.ndarray = np.nanmean(np.abs(clip_actions(actions) - expert)[..., dims], axis=(1, 2))
    return mean


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How well answers agree with the expert as they are, and with a change.

    An agreement is 1 - error / error of the best constant action: 1 for the expert itself, 0 for a constant.

    Attributes:
        shown, changed: Agreement without and with the change.
        ratio: Error with the change, relative to the error without it.
        p: One-sided p-value of the hypothesis that the change does not reduce the error of an episode.
        num_tried: Number of changes among which this one is best.
    """

    shown: float
    changed: float
    ratio: float
    p: float
    num_tried: int

    @property
    def is_much_better(self) -> bool:
        """True if the answers agree with the expert only with the change."""
        is_significant = self.p * self.num_tried < ALPHA
        return is_significant and self.changed >= MUCH_BETTER and self.ratio <= MUCH_BETTER

    @property
    def is_exact(self) -> bool:
        """True if the answers with the change are nearly the expert's."""
        return self.is_much_better and self.changed >= EXACT[0] and self.ratio <= EXACT[1]

    def __str__(self) -> str:
        return f"agreement with the expert {self.shown:.2f}, {self.changed:.2f} with the change"


def constant_error(expert: np.ndarray, dims: Sequence[int]) -> float:
    """Return the error of the best constant action; 0 if the expert's actions are constant."""
    used = expert[..., dims]
    median = np.nanmedian(used, axis=(0, 1))
    return float(np.nanmean(np.abs(used - median)))


def explain(
    shown: np.ndarray,
    changed: np.ndarray,
    expert: np.ndarray,
    dims: Sequence[int],
    *,
    num_tried: int,
    changed_expert: np.ndarray | None = None,
) -> Explanation:
    """Compare the actions (E, S, A) as they are and with a change with those of the expert.

    ``changed_expert`` are the expert's actions to compare the changed ones with, if they are others.
    """
    changed_expert = expert if changed_expert is None else changed_expert
    shown_E, changed_E = errors(shown, expert, dims), errors(changed, changed_expert, dims)
    constant = max(constant_error(expert, dims), _LEAST_ERROR)
    return Explanation(
        shown=1 - float(shown_E.mean()) / constant,
        changed=1 - float(changed_E.mean()) / constant,
        ratio=float(changed_E.mean() / max(shown_E.mean(), 1e-9)),
        p=sign_flip_p(shown_E - changed_E),
        num_tried=num_tried,
    )


def sign_flip_p(differences_E: np.ndarray) -> float:
    """Return the exact one-sided p-value of the hypothesis that the differences are symmetric about 0 or below.

    All 2^E signs are tried (Fisher 1935); E is at most 16.
    """
    num = len(differences_E)
    signs = 1 - 2 * ((np.arange(2**num)[:, None] >> np.arange(num)) & 1)
    sums = signs @ differences_E
    return float(np.mean(sums >= sums[0] - 1e-9))


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Effect of a condition on the answers to the same observations.

    Attributes:
        size: Mean difference between the conditions beyond that within them, relative to the spread among observations.
        noise: Mean difference of answers under the same condition, relative to the same spread.
        p: p-value of a permutation test.
    """

    size: float
    noise: float
    p: float

    @property
    def is_shown(self) -> bool:
        """True if the condition changes the answers."""
        return self.p < ALPHA / 2 and self.size > NEGLIGIBLE

    @property
    def is_absent(self) -> bool:
        """True if the answers differ no more between the conditions than within them."""
        return not self.is_shown and self.size <= max(NEGLIGIBLE, self.noise / 2)


def distances(answers_JRD: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of each pair of repeated answers, (J, R, R)."""
    distance: np.ndarray = np.sqrt(np.mean((answers_JRD[:, :, None] - answers_JRD[:, None]) ** 2, axis=-1))
    return distance


def spread(answers_JD: np.ndarray) -> float:
    """Return the root mean square difference between the answers to different observations."""
    num = len(answers_JD)
    return float(distances(answers_JD[None])[0].sum() / (num * (num - 1)))


def measure_effect(answers_JRD: np.ndarray, conditions_R: Sequence[int]) -> Effect:
    """Measure the effect of the conditions under which R answers to each of J observations were given.

    If the conditions had no effect, they could be exchanged among the answers to an observation.
    """
    distances_JRR, conditions = distances(answers_JRD), np.array(conditions_R)
    num, repeats = distances_JRR.shape[:2]
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((_NUM_PERMUTATIONS, num, repeats)), axis=-1)
    labels = np.concatenate([np.broadcast_to(conditions, (1, num, repeats)), conditions[order]])
    same = labels[..., :, None] == labels[..., None, :]
    same[..., np.arange(repeats), np.arange(repeats)] = False
    other = labels[..., :, None] != labels[..., None, :]
    within = (same * distances_JRR).sum(axis=(1, 2, 3)) / same[0].sum()
    between = (other * distances_JRR).sum(axis=(1, 2, 3)) / other[0].sum()
    excess = between - within
    scale = max(spread(answers_JRD[:, 0]), 1e-9)
    p = float(np.mean(excess >= excess[0] - 1e-9))
    return Effect(size=float(excess[0]) / scale, noise=float(within[0]) / scale, p=p)
