"""Open-loop replay of another dataset's actions, from its initial states or from near them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.rollouts.agents import ActionChunks, Agent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, get_task

_INIT_STATE_STREAM = 2
"""Third number of the seed that perturbs an attempt's initial state; the seed of its noise has two."""
_MAX_DRAWS = 1000
"""Offsets tried to find a valid initial state near a demonstrated one."""


class ReplayAgent(Agent):
    """Agent that repeats the actions of another dataset: attempt k replays episode k mod N."""

    def __init__(self, config: CollectConfig) -> None:
        store = open_source(config)
        store.check_content()
        name = "executed_action" if "executed_action" in store.fields else "action"
        self._actions = store.steps_by_episode(name)
        self._sources = store.sources
        self._remaining: dict[int, Iterator[np.ndarray]] = {}
        self.parent = {
            "path": config.replay.dataset,
            "made_by": store.info.command,
            "fingerprint": store.content_fingerprint,
        }

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Replay the episode whose turn it is."""
        episode = attempt % len(self._actions)
        self.source = f"replay of {self._sources[episode]}"
        self._remaining[row] = iter(self._actions[episode])

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Return the next recorded action of each environment; end the episodes that have none left."""
        actions = np.zeros((len(rows), 1, ACTION_DIM), dtype=np.float32)
        ends = np.zeros(len(rows), dtype=bool)
        for i, row in enumerate(rows.tolist()):
            action = next(self._remaining[row], None)
            if action is None:
                ends[i] = True
            else:
                actions[i, 0] = action
        return ActionChunks(actions=actions, labels=actions, ends=ends)


def open_source(config: CollectConfig) -> EpisodeStore:
    """Open the dataset whose episodes are replayed.

    Raises:
        DatasetError: It is missing, empty, of another task, has no initial states, or has too few episodes.
    """
    store = EpisodeStore.open(config.replay.dataset)
    if store.info.task != config.task:
        raise DatasetError(
            f"{store.path} holds episodes of {store.info.task}: expected {config.task}. Fix: --task {store.info.task}"
        )
    if not store.num_episodes or not len(store.rand_vecs):
        raise DatasetError(f"{store.path} holds no episodes to replay: expected at least one with its initial state.")
    if config.n > store.num_episodes and not (config.action_noise or config.replay.init_perturbation):
        raise DatasetError(
            f"{store.path} has {store.num_episodes} episodes: an exact replay gives at most as many different ones, "
            f"not {config.n}. Fix: --n {store.num_episodes}, or perturb the initial states with --init-perturbation"
        )
    return store


def replayed_init_states(config: CollectConfig, num: int) -> list[InitialState]:
    """Return the initial states of the first ``num`` attempts: those of the dataset, or perturbed ones.

    Without noise and perturbation, there is one attempt per episode at most: more would be copies.

    Raises:
        DatasetError: The task has no valid initial state near one of them.
    """
    store = open_source(config)
    init_states, reach_m = store.init_states, config.replay.init_perturbation
    if not reach_m:
        num = num if config.action_noise else min(num, len(init_states))
        return [init_states[k % len(init_states)] for k in range(num)]
    return [
        _perturb(init_states[k % len(init_states)], reach_m, [config.seed, k, _INIT_STATE_STREAM]) for k in range(num)
    ]


def _perturb(init_state: InitialState, reach_m: float, seed: list[int]) -> InitialState:
    """Sample a valid initial state, uniformly from the box within ``reach_m`` meters of ``init_state`` on each axis."""
    task, rng = get_task(init_state.task), np.random.default_rng(seed)
    dims = task.informative
    for offset in rng.uniform(-reach_m, reach_m, (_MAX_DRAWS, len(dims))):
        perturbed = init_state.array
        perturbed[dims] += offset
        inside = (perturbed[dims] >= np.asarray(task.low)[dims]) & (perturbed[dims] <= np.asarray(task.high)[dims])
        if inside.all() and not task.is_resampled(perturbed):
            return InitialState.of(task.name, perturbed)
    raise DatasetError(
        f"{task.name} has no valid initial state within {reach_m:g} m of {init_state.rand_vec}. "
        "Fix: another --init-perturbation"
    )
