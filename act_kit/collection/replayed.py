"""Another dataset's actions, carried out again from its starts or from near them, without looking."""

from __future__ import annotations

from typing import Any

import numpy as np

from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.sim.starts import Start
from act_kit.sim.tasks import get_task

_START = 2
"""Of the random numbers of an attempt; those of its noise have none."""
_PATIENCE = 1000
"""Draws of a start near a demonstrated one."""


class Replayed:
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

    def begin(self, start: Start, attempt: int) -> None:
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
    if config.n > store.num_episodes and not (config.noise or config.replay.perturb):
        raise DatasetError(
            f"{store.path} has {store.num_episodes} episodes, of which a replay makes no {config.n} different ones: "
            f"--n {store.num_episodes}, or move their starts with --perturb."
        )
    return store


def replayed_starts(config: CollectConfig, num: int) -> list[Start]:
    """Return the starts of the first ``num`` attempts: those of the dataset, or drawn from near them.

    Where more attempts than there are episodes would only make copies, there are no more.

    Raises:
        DatasetError: The task never begins near one of them.
    """
    store = open_source(config)
    starts, reach = store.starts, config.replay.perturb
    if not reach:
        return [starts[k % len(starts)] for k in range(num if config.noise else min(num, len(starts)))]
    return [_near(starts[k % len(starts)], reach, [config.seed, k, _START]) for k in range(num)]


def _near(start: Start, reach_m: float, seed: list[int]) -> Start:
    """Draw a start that the task may have, uniformly from the box of so many metres around another."""
    task, rng = get_task(start.task), np.random.default_rng(seed)
    dims = task.informative
    for offset in rng.uniform(-reach_m, reach_m, (_PATIENCE, len(dims))):
        near = start.array
        near[dims] += offset
        inside = (near[dims] >= np.asarray(task.low)[dims]) & (near[dims] <= np.asarray(task.high)[dims])
        if inside.all() and not task.rejects(near):
            return Start.of(task.name, near)
    raise DatasetError(f"{task.name} never begins within {reach_m:g} m of {start.rand_vec}. Use another --perturb.")
