"""Sound runs of other kinds, in which the doctor must find nothing critical."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from act_kit.collection.recorder import Recorder
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.rollouts.episode import Attempt, Recording
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.simulator import Simulator
from tests.conftest import act
from tests.doctor.cases import TASK, TRAINING, Case


def by_hand(case: Case) -> None:
    """Demonstrate like an operator at a keyboard: more slowly than the expert, and unsteadily."""
    case.collect()
    scripted = EpisodeStore.open(case.data)
    recorder = Recorder(Simulator(TASK), steps_after_success=10)
    expert = ScriptedExpert(TASK)
    episodes = []
    for number, init_state in enumerate(scripted.init_states):
        rng = np.random.default_rng(number)
        recorder.begin(init_state)
        while recorder.steps_left:
            if len(recorder) % 6 == 0:
                jitter = rng.normal(0, 0.15, 4)
            action = np.clip(0.4 * expert.act(recorder.state) + jitter, -1, 1).astype(np.float32)
            recorder.step(action, action)
        episodes.append(recorder.episode(attempt=number, source="teleop:ann"))
    attempts = [Attempt(init_state=e.init_state, num_steps=len(e), kept=bool(e.success.any())) for e in episodes]
    episodes = [episode for episode in episodes if episode.success.any()]
    recordings = [
        Recording(init_state=e.init_state, attempt=e.attempt, source=e.source, steps=e.steps) for e in episodes
    ]
    shutil.rmtree(case.data)
    info = replace(scripted.info, demonstrator="teleop:ann", command=f"act collect --task {TASK} --demonstrator teleop")
    write_dataset(case.data, info, recordings, attempts=attempts)
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
