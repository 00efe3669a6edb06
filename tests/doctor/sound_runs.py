"""Sound runs of other kinds, in which the doctor must find nothing critical."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.episode import AttemptRecord
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialState
from act_kit.sim.vector import VectorSimulator
from tests.conftest import act
from tests.doctor.cases import TASK, TRAINING, Case


class UnsteadyExpert(ExpertAgent):
    """The scripted expert like an operator at a keyboard: slower, with a disturbance that changes every six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.source = "teleop:ann"

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        super().begin(row, init_state, attempt)
        self.rngs = {**getattr(self, "rngs", {}), row: np.random.default_rng(attempt)}
        self.jitter = {**getattr(self, "jitter", {}), row: []}

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        actions = super().plan(states, rows, images)
        for i, row in enumerate(rows.tolist()):
            if not self.jitter[row]:
                self.jitter[row] = [self.rngs[row].normal(0, 0.15, 4)] * 6
            actions[i, 0] = np.clip(0.4 * actions[i, 0] + self.jitter[row].pop(), -1, 1)
        return actions


def by_hand(case: Case) -> None:
    """Demonstrate like an operator at a keyboard: more slowly than the expert, and unsteadily."""
    case.collect()
    scripted = EpisodeStore.open(case.data)
    with VectorSimulator(0) as simulators:
        episodes = rollout(simulators, UnsteadyExpert(), scripted.init_states, steps_after_success=10, physics=True)
    attempts = [AttemptRecord(init_state=e.init_state, num_steps=len(e), kept=bool(e.success.any())) for e in episodes]
    episodes = [episode for episode in episodes if episode.success.any()]
    shutil.rmtree(case.data)
    command = f"act collect --task {TASK} --demonstrator teleop"
    info = replace(scripted.info, demonstrator="teleop:ann", noise=0.0, command=command)
    write_dataset(case.data, info, episodes, attempts=attempts)
    case.train()


def with_noise(case: Case) -> None:
    case.collect("--noise", 0.2)
    case.train()


def corrected(case: Case) -> None:
    """Train on demonstrations and corrections (DAgger)."""
    case.collect()
    case.train()
    more = case.folder / "more"
    source = ("--demonstrator", "policy", "--source", case.run)
    act("collect", "--task", TASK, "--n", 20, *source, "--out", more, "--workers", 1, check=0)
    data = ("--data", case.data, "--data", more)
    act("train", *data, "--out", case.run, "--workers", 1, "--overwrite", *TRAINING, check=0)
    case.evaluate()


SOUND: dict[str, Callable[[Case], None]] = {
    "demonstrated by hand": by_hand,
    "demonstrated with noise": with_noise,
    "corrected by the expert": corrected,
}
"""Runs that must have no critical finding."""
