"""How a policy will do on starts it has not seen, told from demonstrations alone, before any rollout.

A loss on held-out episodes of the same dataset says nothing where all of them begin alike. The same loss on fresh
demonstrations does; and carrying out the nearest demonstration's actions from a fresh start says what memory alone
would achieve.

Shapes: T steps, K chunk, A action, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

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
"""Episodes that a loss is measured on; more tell little more."""

SEED = 730_001
"""Of the doctor's own starts, which nobody else is likely to use."""

GAP = 1.5
"""From this ratio of the fresh to the held-out loss on, a policy is said to have learnt its starts by heart ..."""

_LIKELY = 0.01
"""... if chance gives it less often than this."""

_AGREES = 0.99
"""Share of the states in which the expert must act as recorded, for its fresh demonstrations to be like these."""

_LEAST_NOISE = 0.3
"""Of a dataset's noise, which an episode that has it shows at least; clipping takes some of it away."""


class Incomparable(DatasetError):
    """Demonstrations that fresh ones of the scripted expert are no measure of."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The L1 of predicted chunks, in units of the action.

    Attributes:
        sums_E: Summed absolute errors of each episode.
        counts_E: Numbers compared in each.
    """

    sums_E: np.ndarray
    counts_E: np.ndarray

    @property
    def value(self) -> float:
        """Of all episodes together, as the trainer logs it."""
        return float(self.sums_E.sum() / self.counts_E.sum())

    @property
    def by_episode(self) -> np.ndarray:
        """Of each episode, float64 (E,)."""
        by_episode: np.ndarray = self.sums_E / self.counts_E
        return by_episode


def evenly(episodes: np.ndarray, num: int = MAX_EPISODES) -> np.ndarray:
    """Choose at most ``num`` of some episodes, evenly over all of them."""
    chosen: np.ndarray = episodes[
        np.unique(np.linspace(0, len(episodes) - 1, min(num, len(episodes))).round().astype(int))
    ]
    return chosen


def measure_loss(policy: Policy, store: EpisodeStore, episodes: np.ndarray) -> Loss:
    """Return the L1 (z = 0) of a policy, as it is in use, on episodes of a dataset."""
    states, actions = (np.split(store.steps(name), store.episode_ends[:-1]) for name in ("state", "action"))
    task = policy.tasks.index(store.info.task)
    sums, counts = [], []
    for episode in episodes:
        images = None
        if policy.views:
            images = np.stack([ImageStore(store, camera).episode(episode) for camera in policy.views.cameras], axis=1)
        chunks_TKA = policy.predict(states[episode], images, np.full(len(states[episode]), task))
        actions_TA = actions[episode]
        slots_TK = np.arange(len(actions_TA))[:, None] + np.arange(policy.chunk_size)
        valid_TK = slots_TK < len(actions_TA)
        wanted_TKA = actions_TA[np.minimum(slots_TK, len(actions_TA) - 1)]
        sums.append(float(np.abs(chunks_TKA - wanted_TKA)[valid_TK].sum(dtype=np.float64)))
        counts.append(int(valid_TK.sum()) * actions_TA.shape[1])
    return Loss(sums_E=np.array(sums), counts_E=np.array(counts))


def comparable(store: EpisodeStore, episodes: np.ndarray) -> np.ndarray:
    """Return at most ``MAX_EPISODES`` of some episodes, those that fresh ones of the scripted expert would be like.

    Only its losses can be compared: another demonstrator is as hard to predict as he is, from whatever state, and so
    are labels that are wrong.

    Raises:
        Incomparable: There are none.
    """
    info, sources = store.info, store.sources
    scripted = [int(i) for i in episodes if sources[i] == "scripted"]
    if not scripted:
        who = ", ".join(dict.fromkeys(sources[i] for i in episodes))
        raise Incomparable(
            f"The held-out demonstrations of {store.path} are by {who}, whom nobody can ask for fresh ones; how hard "
            "the scripted expert's are to predict says nothing of theirs."
        )
    alike = _as_collected(store, evenly(np.array(scripted)))
    if not alike:
        raise Incomparable(
            f"No held-out demonstration of {store.path} has the noise ({info.noise:g}) and the steps after success "
            f"({info.steps_after_success}) that the dataset names, so fresh ones would be others."
        )
    expert = ScriptedExpert(info.task)
    states, actions = (np.split(store.steps(name), store.episode_ends[:-1]) for name in ("state", "action"))
    same: list[bool] = []
    for i in alike:
        wanted = np.stack([expert.act(state) for state in states[i]])
        same += np.isclose(wanted, actions[i], atol=1e-5).all(axis=1).tolist()
    if np.mean(same) < _AGREES:
        raise Incomparable(
            f"The recorded actions of {store.path} are the scripted expert's in {100 * np.mean(same):.0f} % of the "
            "states, so its fresh demonstrations are no measure of them."
        )
    return np.array(alike)


def _as_collected(store: EpisodeStore, episodes: np.ndarray) -> list[int]:
    """Return the episodes with the noise and the steps after success that their dataset names; a merged one has others.

    Where success or what was executed was not recorded, nothing can differ.
    """
    info, lengths = store.info, store.episode_lengths
    tails = lengths - 1 - store.success_steps
    is_ended = (store.success_steps < 0) | (tails == info.steps_after_success) | (lengths == HORIZON)
    noise_T = np.full(store.num_steps, info.noise)
    if "executed_action" in store.fields:
        noise_T = np.abs(store.steps("executed_action") - store.steps("action")).mean(axis=1)
    noise = [float(of_episode.mean()) for of_episode in np.split(noise_T, store.episode_ends[:-1])]
    is_as_noisy = [_LEAST_NOISE * info.noise <= each and (each > 0) == (info.noise > 0) for each in noise]
    return [int(i) for i in episodes if is_ended[i] and is_as_noisy[i]]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The loss on held-out demonstrations of a dataset, beside that on fresh ones.

    Attributes:
        held_out, fresh: L1, in units of the action.
        p: Probability that fresh episodes are as much harder by chance, were all alike (Mann and Whitney 1947,
            one-sided). Episodes are the unit: steps of one err together.
    """

    held_out: float
    fresh: float
    p: float

    @classmethod
    def of(cls, held_out: Loss, fresh: Loss) -> Gap:
        """Compare two losses."""
        p = float(mannwhitneyu(fresh.by_episode, held_out.by_episode, alternative="greater").pvalue)
        return cls(held_out=held_out.value, fresh=fresh.value, p=p)

    @property
    def ratio(self) -> float:
        """How many times the fresh loss is the held-out one."""
        return self.fresh / max(self.held_out, 1e-12)

    @property
    def is_alarming(self) -> bool:
        """Whether the policy has learnt its starts by heart, as far as that can be told."""
        return self.ratio > GAP and self.p < _LIKELY

    def __str__(self) -> str:
        return (
            f"L1 is {self.held_out:.4f} on held-out demonstrations and {self.fresh:.4f} on fresh ones, "
            f"{self.ratio:.1f} times as much (p = {self.p:.1g})"
        )


def replay_nearest(store: EpisodeStore, init_states: Sequence[InitialState]) -> list[bool]:
    """Carry out, from each start, the actions of the demonstration that began nearest to it: does that succeed?"""
    task = get_task(store.info.task)
    dims = task.informative
    shown = store.rand_vecs[:, dims] / task.width[dims]
    asked = stack(init_states)[:, dims] / task.width[dims]
    ends = np.concatenate([[0], store.episode_ends])
    actions = store.steps("executed_action")
    simulator = Simulator(task.name)
    successes = []
    for init_state, where in zip(init_states, asked, strict=True):
        nearest = int(np.linalg.norm(shown - where, axis=1).argmin())
        simulator.reset(init_state)
        step_batch = simulator.step_chunk(actions[ends[nearest] : ends[nearest + 1]])
        successes.append(bool(step_batch.success.any()))
    return successes


def memory_succeeds(store: EpisodeStore, num: int = 40) -> Rate:
    """Return how often the nearest demonstration's actions succeed from fresh starts: what needs no policy at all."""
    init_states = InitialStateDistribution(store.info.task).sample(num, seed=SEED, stream="evaluate")
    return Rate(sum(replay_nearest(store, init_states)), num)
