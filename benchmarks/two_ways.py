"""Demonstrations of two experts that pass a wall on different sides: what each head makes of them.

    python -m benchmarks.two_ways --out two-ways                         hours on two cores
    python -m benchmarks.two_ways --out two-ways --table                 print what there is, and measure nothing

Arms, each with 50 demonstrations in all, collected with the seed of the training, and the default options: Meta-World's
expert alone, the expert of ``--demonstrator other-way`` alone, and half of each. The last is trained with every head,
and with ACT once more with a label of the expert in the state (in a number that is 0 in these tasks), which says in use
which way to go. A policy is evaluated from 100 new initial states: success, and on which side the object passed the
wall. The results are a file
(``benchmarks/experiment.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import act_kit
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.policies.agent import PolicyAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.other_way import TASKS
from benchmarks import experiment
from benchmarks.experiment import Job, Row

EXPERTS = ("scripted", "other-way")
NUM = 50
LABEL = 14
"""Number of the state that holds the label: part of the pose of a second object, which these tasks do not have."""

WALL_Y, MIDDLE_X = 0.75, 0.12
"""The wall in y, and the x that divides the two ways, in meters."""

Arm = tuple[tuple[int, ...], str, bool]
"""Demonstrations of each expert, head, and whether the state has a label."""

ARMS: dict[str, Arm] = {
    "the first expert": ((NUM, 0), "act", False),
    "the second expert": ((0, NUM), "act", False),
    "both, act": ((NUM // 2, NUM // 2), "act", False),
    "both, flow": ((NUM // 2, NUM // 2), "flow", False),
    "both, mip": ((NUM // 2, NUM // 2), "mip", False),
    "both, act with a label": ((NUM // 2, NUM // 2), "act", True),
}


class LabeledAgent(PolicyAgent):
    """Policy that is told which way to go: half of the environments go each way, by the parity of their episodes."""

    def __init__(self, policy: act_kit.Policy) -> None:
        super().__init__(policy)
        self._labels: dict[int, float] = {}

    def begin(self, row: int, init_state: act_kit.InitialState, attempt: int) -> None:
        """Choose the way of the episode."""
        super().begin(row, init_state, attempt)
        self._labels[row] = 1.0 if attempt % 2 else -1.0

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Write the label into the states."""
        states = states.copy()
        states[:, LABEL] = [self._labels[int(row)] for row in rows]
        return super().plan(states, rows, images)


def label(store: EpisodeStore, value: float, out: Path, job: Job) -> Path:
    """Write a copy of a dataset with the label in its states."""
    labeled: list[Episode] = []
    for episode in store.iter_episodes():
        state = episode.state.copy()
        state[:, LABEL] = value
        labeled.append(replace(episode, state=state))
    folder = out / "data" / f"{job.name}-labeled-{value:+.0f}"
    shutil.rmtree(folder, ignore_errors=True)
    write_dataset(folder, store.info, labeled, attempts=store.attempts())
    return folder


def measure(job: Job, out: Path) -> list[Row]:
    """Train and evaluate the policy of an arm; the note of the row has the way of every episode, 1 for the second."""
    numbers, head, has_label = ARMS[job.arm]
    (task,) = job.tasks
    data: list[Path] = []
    for which, (expert, num) in enumerate(zip(EXPERTS, numbers, strict=True)):
        if num:
            folder = out / "data" / f"{task}-{expert}-{num}-{job.seed}"
            # Other initial states than the other expert's: nothing but the way differs.
            experiment.collect(folder, task, num, 2 * job.seed + which, demonstrator=expert)
            data.append(label(EpisodeStore.open(folder), (-1.0, 1.0)[which], out, job) if has_label else folder)
    policy = experiment.train(
        data,
        out / "runs" / job.name,
        job.seed,
        [f"policy={head}_small", "selection.num_evaluations=0"],
        allow_low_diversity=True,  # labeled states do not replay
    )
    evaluation = experiment.evaluate(LabeledAgent(policy) if has_label else policy, task, job.seed)
    ways = ""
    for episode in evaluation.outcomes:
        passing = np.argmax(episode.state[:, 5] > WALL_Y)
        ways += str(int(episode.state[passing, 4] > MIDDLE_X))
    return [Row.of(job.arm, job.seed, evaluation, ways)]


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print success, successes by seed, and the share of successes on the second expert's way, by arm and task."""
    experiment.print_head(["arm", "task", "success, %", "by seed", "of these on the second way, by seed"])
    for task in tasks:
        for arm in ARMS:
            chosen = experiment.choose(rows, arm, task)
            ways = []
            for row in chosen:
                second = np.array([way == "1" for way in row.note])
                ways.append(str((row.successes & second).sum()))
            experiment.print_row(
                [
                    arm,
                    task.removesuffix("-v3"),
                    experiment.mean_cell([chosen]),
                    experiment.by_seed(chosen),
                    " ".join(ways),
                ]
            )


def main() -> None:
    """Parse the command line and run."""
    arguments = experiment.parse_arguments(__doc__, tasks=TASKS, seeds=range(3), arms=list(ARMS))
    jobs = experiment.jobs_of_tasks(arguments, arguments.only)
    print_table(experiment.run(arguments, jobs, measure), arguments.tasks)


if __name__ == "__main__":
    main()
