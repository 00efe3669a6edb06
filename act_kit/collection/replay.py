"""Another dataset's actions, carried out again from its starts or from near them, without looking."""

from __future__ import annotations

from typing import Any

import numpy as np

from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import get_task

_START = 2
"""Of the random numbers of an attempt; those of its noise have none."""
_PATIENCE = 1000
"""Draws of a start near a demonstrated one."""


class ReplayDemonstrator:
    """Demonstrates what another dataset's episodes did: attempt k is of its episode k mod N."""

    def __init__(self, config: CollectConfig) -> None:
        store = open_source(config)
        store.check_content()
        name = "executed_action" if "executed_action" in store.fields else "action"
        self._actions = np.split(store.steps(name), store.episode_ends[:-1])
        self._sources = store.sources
        self.source = ""
        self.parent: dict[str, Any] | None = {
            "path": config.replay.dataset,
            "made_by": store.info.command,
            "fingerprint": store.fingerprint or store.compute_fingerprint(),
        }

    def begin(self, init_state: InitialState, attempt: int) -> None:
        episode = attempt % len(self._actions)
        self.source = f"replay of {self._sources[episode]}"
        self._left = iter(self._actions[episode])

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        action = next(self._left, None)
        return None if action is None else (action, action)


def open_source(config: CollectConfig) -> EpisodeStore:
    """Open the dataset whose episodes are replayed.

    Raises:
        DatasetError: It is missing, empty, of another task, without starts, or too small.
    """
    store = EpisodeStore.open(config.replay.dataset)
    if store.info.task != config.task:
        raise DatasetError(f"{store.path} is of {store.info.task}, not of {config.task}: --task {store.info.task}")
    if not store.num_episodes or not len(store.rand_vecs):
        raise DatasetError(f"{store.path} holds no demonstration to replay.")
    if config.n > store.num_episodes and not (config.noise or config.replay.init_perturbation):
        raise DatasetError(
            f"{store.path} has {store.num_episodes} episodes, of which a replay makes no {config.n} different ones: "
            f"--n {store.num_episodes}, or move their starts with --init-perturbation."
        )
    return store


def replayed_init_states(config: CollectConfig, num: int) -> list[InitialState]:
    """Return the starts of the first ``num`` attempts: those of the dataset, or drawn from near them.

    Where more attempts than there are episodes would only make copies, there are no more.

    Raises:
        DatasetError: The task never begins near one of them.
    """
    store = open_source(config)
    init_states, reach = store.init_states, config.replay.init_perturbation
    if not reach:
        return [init_states[k % len(init_states)] for k in range(num if config.noise else min(num, len(init_states)))]
    return [_near(init_states[k % len(init_states)], reach, [config.seed, k, _START]) for k in range(num)]


def _near(init_state: InitialState, reach_m: float, seed: list[int]) -> InitialState:
    """Draw a start that the task may have, uniformly from the box of so many metres around another."""
    task, rng = get_task(init_state.task), np.random.default_rng(seed)
    dims = task.informative
    for offset in rng.uniform(-reach_m, reach_m, (_PATIENCE, len(dims))):
        near = init_state.array
        near[dims] += offset
        inside = (near[dims] >= np.asarray(task.low)[dims]) & (near[dims] <= np.asarray(task.high)[dims])
        if inside.all() and not task.rejects(near):
            return InitialState.of(task.name, near)
    raise DatasetError(
        f"{task.name} never begins within {reach_m:g} m of {init_state.rand_vec}. Use another --init-perturbation."
    )
