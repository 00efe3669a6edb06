"""Prediction of generalization to new initial states from demonstrations alone, before any rollout.

The loss on held-out episodes of the same dataset is uninformative if all of them share similar initial states. The loss
on new demonstrations is informative. Executing the nearest demonstration's actions from a new initial state measures
what memorization alone would achieve.

Shapes: T steps, K chunk, A action, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from act_kit.arrays import evenly_spaced
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.policies.policy import Policy
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, stack
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import HORIZON, get_task
from act_kit.statistics import Rate

MAX_EPISODES = 30
"""Maximum number of episodes on which a loss is measured; more add little precision."""

SEED = 730_001
"""Seed of the doctor's own initial states, chosen so that users are unlikely to use the same."""

GAP = 1.5
"""Ratio of the loss on new to held-out demonstrations above which a policy memorizes its initial states, if the p-value
is below ``_SIGNIFICANCE``."""

_SIGNIFICANCE = 0.01

_MIN_AGREEMENT = 0.99
"""Minimum fraction of states in which the expert must act as recorded for its new demonstrations to be comparable."""

_MIN_NOISE = 0.3
"""Minimum fraction of a dataset's noise that each episode shows; clipping reduces the noise."""


class IncomparableError(DatasetError):
    """Demonstrations whose loss is not comparable with the loss on new ones by the scripted expert."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The L1 loss of predicted chunks, in units of the action.

    Attributes:
        sums_E: Sum of absolute errors of each episode.
        counts_E: Number of compared values of each episode.
    """

    sums_E: np.ndarray
    counts_E: np.ndarray

    @property
    def value(self) -> float:
        """Mean over all episodes, as the trainer logs it."""
        return float(self.sums_E.sum() / self.counts_E.sum())


def evenly(episodes: np.ndarray, num: int = MAX_EPISODES) -> np.ndarray:
    """Return at most ``num`` of the episodes, evenly spaced."""
    chosen: np.ndarray = episodes[evenly_spaced(len(episodes), min(num, len(episodes)))]
    return chosen


def measure_loss(policy: Policy, store: EpisodeStore, episodes: np.ndarray) -> Loss:
    """Return the L1 loss of a policy in inference mode on episodes of a dataset."""
    states, actions = store.steps_by_episode("state"), store.steps_by_episode("action")
    task = policy.tasks.index(store.info.task)
    sums, counts = [], []
    for episode in episodes:
        images = None
        if policy.views:
            images = np.stack([ImageStore(store, camera).episode(episode) for camera in policy.views.cameras], axis=1)
        states_TS, actions_TA = states[episode], actions[episode]
        tasks_T, first_TS = np.full(len(states_TS), task), np.broadcast_to(states_TS[0], states_TS.shape)
        chunks_TKA = policy.predict(states_TS, images, tasks_T, first_TS)
        slots_TK = np.arange(len(actions_TA))[:, None] + np.arange(policy.chunk_size)
        valid_TK = slots_TK < len(actions_TA)
        targets_TKA = actions_TA[np.minimum(slots_TK, len(actions_TA) - 1)]
        sums.append(float(np.abs(chunks_TKA - targets_TKA)[valid_TK].sum(dtype=np.float64)))
        counts.append(int(valid_TK.sum()) * actions_TA.shape[1])
    return Loss(sums_E=np.array(sums), counts_E=np.array(counts))


def comparable(store: EpisodeStore, episodes: np.ndarray) -> np.ndarray:
    """Return at most ``MAX_EPISODES`` of the episodes, those that are comparable with new ones by the scripted expert.

    The losses of other demonstrators, and of wrong labels, differ from the expert's for reasons other than the initial
    states.

    Raises:
        IncomparableError: No episode is comparable.
    """
    info = store.info
    sources = np.array(store.sources)[episodes]
    if not (sources == "scripted").any():
        raise IncomparableError(
            f"The held-out demonstrations of {store.path} are by {', '.join(dict.fromkeys(sources))}, and new ones "
            "cannot be generated; those of the scripted expert are not comparable."
        )
    scripted = evenly(episodes[sources == "scripted"])
    matching: np.ndarray = scripted[_is_as_collected(store)[scripted]]
    if not len(matching):
        raise IncomparableError(
            f"No held-out demonstration of {store.path} has the noise ({info.noise:g}) and the steps after success "
            f"({info.steps_after_success}) that the dataset names, so new ones are not comparable."
        )
    expert = ScriptedExpert(info.task)
    states, actions = store.steps_by_episode("state"), store.steps_by_episode("action")
    agrees = []
    for i in matching:
        expert_actions = np.stack(list(map(expert.act, states[i])))
        agrees.append(np.isclose(expert_actions, actions[i], atol=1e-5).all(axis=1))
    agreement = np.concatenate(agrees).mean()
    if agreement < _MIN_AGREEMENT:
        raise IncomparableError(
            f"The recorded actions of {store.path} are the scripted expert's in {100 * agreement:.0f} % of the "
            "states, so its new demonstrations are not comparable."
        )
    return matching


def _is_as_collected(store: EpisodeStore) -> np.ndarray:
    """Return which episodes, bool (E,), have the noise and the steps after success that the dataset names.

    Those of merged data may have others. Episodes without recorded success or executed actions count as matching.
    """
    info, lengths = store.info, store.episode_lengths
    tails = lengths - 1 - store.success_steps
    is_ended = (store.success_steps < 0) | (tails == info.steps_after_success) | (lengths == HORIZON)
    noise_E = np.full(len(lengths), info.noise, dtype=np.float64)
    if "executed_action" in store.fields:
        noise_T = np.abs(store.steps("executed_action") - store.steps("action")).mean(axis=1)
        for i, noise in enumerate(np.split(noise_T, store.episode_ends[:-1])):
            noise_E[i] = noise.mean()
    has_noise = (noise_E >= _MIN_NOISE * info.noise) & ((noise_E > 0) == (info.noise > 0))
    is_as_collected: np.ndarray = is_ended & has_noise
    return is_as_collected


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The losses on held-out demonstrations of a dataset and on new ones.

    Attributes:
        held_out: L1 loss on held-out demonstrations, in units of the action.
        fresh: L1 loss on new demonstrations, in units of the action.
        p: One-sided p-value of a larger loss on new episodes (Mann and Whitney 1947). The unit is the episode, because
            the errors of its steps are correlated.
    """

    held_out: float
    fresh: float
    p: float

    @classmethod
    def of(cls, held_out: Loss, fresh: Loss) -> Gap:
        """Compare two losses."""
        p = float(
            mannwhitneyu(
                fresh.sums_E / fresh.counts_E, held_out.sums_E / held_out.counts_E, alternative="greater"
            ).pvalue
        )
        return cls(held_out=held_out.value, fresh=fresh.value, p=p)

    @property
    def ratio(self) -> float:
        """Ratio of the loss on new demonstrations to the loss on held-out ones."""
        return self.fresh / max(self.held_out, 1e-12)

    @property
    def is_alarming(self) -> bool:
        """True if the gap indicates that the policy memorizes its initial states."""
        return self.ratio > GAP and self.p < _SIGNIFICANCE

    def __str__(self) -> str:
        return (
            f"L1 is {self.held_out:.4f} on held-out demonstrations and {self.fresh:.4f} on new ones, "
            f"{self.ratio:.1f} times as much (p = {self.p:.1g})"
        )


def replay_nearest(store: EpisodeStore, init_states: Sequence[InitialState]) -> list[bool]:
    """Execute from each initial state the actions of the nearest demonstration; return which episodes succeed."""
    task = get_task(store.info.task)
    dims = task.informative
    demonstrated = store.rand_vecs[:, dims] / task.width[dims]
    queries = stack(init_states)[:, dims] / task.width[dims]
    actions = store.steps_by_episode("executed_action")
    simulator = Simulator(task.name)
    successes = []
    for init_state, query in zip(init_states, queries, strict=True):
        nearest = int(np.linalg.norm(demonstrated - query, axis=1).argmin())
        simulator.reset(init_state)
        successes.append(bool(simulator.step_chunk(actions[nearest]).success.any()))
    return successes


def nearest_replay_rate(store: EpisodeStore, num: int = 40) -> Rate:
    """Return the success rate of the nearest demonstration's actions from test initial states, without any policy."""
    init_states = InitialStateDistribution(store.info.task).sample(num, seed=SEED, stream="evaluate")
    return Rate(sum(replay_nearest(store, init_states)), num)
