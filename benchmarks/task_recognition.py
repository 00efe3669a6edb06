"""Policies of MT10 that are told their task, and that recognize it from the first state of the episode.

    python -m benchmarks.task_recognition --out recognition              hours on two cores
    python -m benchmarks.task_recognition --out recognition --table      print what there is, and measure nothing
    python -m benchmarks.task_recognition --out small --seeds 0 --demonstrations 20 --tasks reach-v3 push-v3

Arms, each with 50 demonstrations per task, collected with the seed of the training, and the default options: the task
is told; it is recognized (``policy.recognize_task=true``); and it is recognized while the goal is hidden, in the
demonstrations and in use. A policy is evaluated from 100 new initial states per task: success, and the tasks that were
recognized. The results are a file (``benchmarks/experiment.py``); an experiment with other tasks or demonstrations,
such as the last one above, needs a folder of its own.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import act_kit
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.eval.results import Evaluation
from act_kit.policies.agent import PolicyAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.tasks import MT10
from act_kit.text import name_values
from benchmarks import experiment
from benchmarks.experiment import Job, Row

TOLD, RECOGNIZED, HIDDEN = "told", "recognized", "recognized, goal hidden"
ARMS = (TOLD, RECOGNIZED, HIDDEN)


def hide_goal(states: np.ndarray) -> np.ndarray:
    """Return states (T, 39) with zeros for the goal, as Meta-World hides it."""
    hidden = states.copy()
    hidden[:, -3:] = 0
    return hidden


class GoalHidden(PolicyAgent):
    """Policy that does not see the goal."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Hide the goal."""
        return super().plan(hide_goal(states), rows, images)


def hide_goals(path: Path, out: Path) -> Path:
    """Write a copy of a dataset whose states hide the goal."""
    store, hidden = EpisodeStore.open(path), list[Episode]()
    for episode in store.iter_episodes():
        hidden.append(replace(episode, state=hide_goal(episode.state)))
    shutil.rmtree(out, ignore_errors=True)
    write_dataset(out, store.info, hidden, attempts=store.attempts())
    return out


def measure(job: Job, out: Path, *, demonstrations: int) -> list[Row]:
    """Train and evaluate the policy of an arm; the note of a row has the tasks that were recognized."""
    data: list[Path] = []
    for task in job.tasks:
        folder = experiment.collect(
            out / "data" / f"{task}-{demonstrations}-{job.seed}", task, demonstrations, job.seed
        )
        data.append(hide_goals(folder, out / "data" / f"{job.name}-{task}") if job.arm == HIDDEN else folder)
    overrides = [f"policy.recognize_task={job.arm != TOLD}"]
    if job.arm == HIDDEN:
        overrides.append("selection.num_evaluations=0")  # its rollouts show the goal
    policy = experiment.train(
        data,
        out / "runs" / job.name,
        job.seed,
        overrides,
        allow_low_diversity=job.arm == HIDDEN,  # states without a goal do not replay
    )
    if job.arm == HIDDEN:
        agent = GoalHidden(policy)
        evaluations = [experiment.evaluate(agent, task, job.seed) for task in policy.tasks]
    else:
        evaluations = experiment.evaluate_policy(policy, job.seed)
    return [Row.of(job.arm, job.seed, each, recognized(policy, job.arm, each)) for each in evaluations]


def recognized(policy: act_kit.Policy, arm: str, evaluation: Evaluation) -> str:
    """Write the numbers of episodes in which each task was recognized."""
    if arm != HIDDEN:
        return name_values(evaluation.recognized_tasks)
    first = hide_goal(np.stack([episode.state[0] for episode in evaluation.outcomes]))
    tasks = [policy.tasks[index] for index in policy.recognize_task(first).argmax(axis=1)]
    return name_values(dict(Counter(tasks).most_common()))


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print success and recognition by task, with the means."""
    names = ["task", "told, %", "recognized, %", "difference, points", "told, by seed", "recognized, by seed"]
    experiment.print_head([*names, "tasks recognized", "tasks recognized, goal hidden"])
    for task in tasks:
        told, own = experiment.choose(rows, TOLD, task), experiment.choose(rows, RECOGNIZED, task)
        cells = [
            experiment.mean_cell([told]),
            experiment.mean_cell([own]),
            experiment.gain_cell([own], [told]),
            experiment.by_seed(told),
            experiment.by_seed(own),
        ]
        cells += [confusions(own), confusions(experiment.choose(rows, HIDDEN, task))]
        experiment.print_row([task.removesuffix("-v3"), *cells])
    of = {arm: [experiment.choose(rows, arm, task) for task in tasks] for arm in ARMS}
    means = [
        experiment.mean_cell(of[TOLD]),
        experiment.mean_cell(of[RECOGNIZED]),
        experiment.gain_cell(of[RECOGNIZED], of[TOLD]),
    ]
    experiment.print_row(["mean", *means, "", "", accuracy(of[RECOGNIZED]), accuracy(of[HIDDEN])])


def counts_of(rows: Sequence[Row]) -> Counter[str]:
    """Return the number of episodes of all rows in which each task was recognized."""
    counts: Counter[str] = Counter()
    for row in rows:
        for entry in filter(None, row.note.split(", ")):
            task, _, number = entry.partition(" ")
            counts[task] += int(number)
    return counts


def confusions(rows: Sequence[Row]) -> str:
    """Write the tasks that were recognized in all seeds, the most frequent first."""
    counts = {task.removesuffix("-v3"): number for task, number in counts_of(rows).most_common()}
    return name_values(counts)


def accuracy(by_task: Sequence[Sequence[Row]]) -> str:
    """Write the percentage of episodes whose task was recognized."""
    right = total = 0
    for rows in filter(None, by_task):
        counts = counts_of(rows)
        right += counts[rows[0].task]
        total += counts.total()
    return f"{100 * right / total:.1f} % right" if total else ""


def main() -> None:
    """Parse the command line and run."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--demonstrations", type=int, default=50, help="demonstrations per task")

    arguments = experiment.parse_arguments(__doc__, tasks=sorted(MT10), seeds=range(3), arms=ARMS, add=add)
    jobs: list[Job] = []
    for seed in arguments.seeds:
        jobs += [Job(arm, tuple(arguments.tasks), seed) for arm in arguments.only]
    settings = {"tasks": sorted(arguments.tasks), "demonstrations": arguments.demonstrations}
    measure_job = partial(measure, demonstrations=arguments.demonstrations)
    rows = experiment.run(arguments, jobs, measure_job, settings=settings)
    print_table(rows, arguments.tasks)


if __name__ == "__main__":
    main()
