"""Demonstrations of two experts that pass a wall on different sides: what each head makes of them.

    python -m benchmarks.two_ways --out two-ways                         hours on two cores
    python -m benchmarks.two_ways --out two-ways --table                 print what there is, and measure nothing

Arms, each with 50 demonstrations in all, collected with the seed of the training, and the default options: Meta-World's
expert alone, the expert of ``--demonstrator other-way`` alone, and half of each. The last is trained with every head,
and with ACT once more with a label of the expert in the state (in a number that is 0 in these tasks), which says in use
which way to go. A policy is evaluated from 100 new initial states: success, and on which side the object passed the
wall. What is finished is kept: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

import act_kit
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.files import write_json
from act_kit.policies.agent import PolicyAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.other_way import TASKS
from act_kit.statistics import seeds_mean

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


def label(store: EpisodeStore, value: float, out: Path) -> Path:
    """Write a copy of a dataset with the label in its states."""
    if not out.exists():
        labeled: list[Episode] = []
        for episode in store.iter_episodes():
            state = episode.state.copy()
            state[:, LABEL] = value
            labeled.append(replace(episode, state=state))
        write_dataset(out, store.info, labeled, attempts=store.attempts())
    return out


def file_of(name: str, task: str, seed: int, out: Path) -> Path:
    """Return the file of the results of an arm."""
    arm = name.replace(",", "").replace(" ", "-")
    return out / "results" / f"{arm}-{task}-{seed}.json"


def measure(name: str, task: str, seed: int, out: Path) -> str:
    """Train and evaluate the policy of an arm, as far as it is not done; return its success."""
    result = file_of(name, task, seed, out)
    if not result.exists():
        numbers, head, has_label = ARMS[name]
        data: list[Path] = []
        for which, (expert, num) in enumerate(zip(EXPERTS, numbers, strict=True)):
            if num:
                folder = out / "data" / f"{task}-{expert}-{num}-{seed}"
                # Other initial states than the other expert's: nothing but the way differs.
                store = act_kit.collect(
                    task, num, seed=2 * seed + which, demonstrator=expert, out=folder, workers=1, resume=True
                )
                data.append(label(store, (-1.0, 1.0)[which], Path(f"{folder}-labeled")) if has_label else store.path)
        policy = act_kit.train(
            data,
            out / "runs" / result.stem,
            seed=seed,
            workers=1,
            resume=True,
            allow_low_diversity=True,  # labeled states do not replay
            overrides=[f"policy={head}_small", "selection.num_evaluations=0"],
        )
        agent = LabeledAgent(policy) if has_label else PolicyAgent(policy)
        overrides = ["baseline_episodes=0", "demonstrated_episodes=0"]
        evaluation = act_kit.evaluate(agent, task, seed=seed, overrides=overrides, workers=1)
        passed = [
            bool(outcome.state[np.argmax(outcome.state[:, 5] > WALL_Y), 4] > MIDDLE_X)
            for outcome in evaluation.outcomes
        ]
        result.parent.mkdir(exist_ok=True)
        write_json(result, {"success": evaluation.successes.tolist(), "second_way": passed})
    return f"{result.stem}: {100 * np.mean(json.loads(result.read_text())['success']):.0f} %"


def table(out: Path, tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Print success, successes by seed, and the share of successes on the second expert's way, by arm and task."""
    print("| arm | task | success, % | by seed | of these on the second way, by seed |")
    print("| --- " * 5 + "|")
    for task in tasks:
        for name in ARMS:
            rows = []
            for seed in seeds:
                path = file_of(name, task, seed, out)
                if path.exists():
                    rows.append(json.loads(path.read_text()))
            successes = np.array([row["success"] for row in rows], dtype=bool)
            second = np.array([row["second_way"] for row in rows], dtype=bool)
            mean = ""
            if len(rows) > 1:
                estimate = seeds_mean([successes])
                mean = f"{100 * estimate.value:.1f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
            by_seed = " ".join(str(each.sum()) for each in successes)
            ways = " ".join(str((each & way).sum()) for each, way in zip(successes, second, strict=True))
            print(f"| {name} | {task.removesuffix('-v3')} | {mean} | {by_seed} | {ways} |")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="trainings at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes: two trainings side by side are faster so
    if not arguments.table:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.side_by_side, mp_context=context) as pool:
            jobs = []
            for seed in arguments.seeds:
                for task in arguments.tasks:
                    jobs += [pool.submit(measure, name, task, seed, arguments.out) for name in ARMS]
            for job in jobs:
                print(job.result(), flush=True)
    table(arguments.out, arguments.tasks, arguments.seeds)


if __name__ == "__main__":
    main()
