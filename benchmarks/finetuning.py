"""What fine-tuning buys, beside what else can be done with a policy's demonstrations in the same time.

    python -m benchmarks.finetuning --out finetuning                          many hours on two cores
    python -m benchmarks.finetuning --out finetuning --tasks soccer-v3 --only finetuned "best of several"
    python -m benchmarks.finetuning --out finetuning --table                  print what there is, and measure nothing

Base: 100 demonstrations and the default training. The other arms get ``--minutes`` of wall time more than the base, on
one thread and one simulation process:

- finetuned: ``act finetune`` on the base;
- whole policy finetuned: the same with ``trains=policy``, instead of a correction of the frozen base;
- best of several: further training seeds on the same demonstrations, of which selection rollouts choose the best;
- more demonstrations: as many as can be collected and trained on in that time, from the time that the base took;
- DAgger: rounds of 50 corrected attempts and a training on all data so far.

Every policy is evaluated from the same 200 new initial states. The results are a file (``benchmarks/experiment.py``);
an arm that was stopped begins again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import act_kit
from act_kit.metrics import series
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import ExpertAgent
from benchmarks import experiment
from benchmarks.experiment import Job, Row

TASKS = ("peg-insert-side-v3", "soccer-v3", "box-close-v3", "basketball-v3", "sweep-into-v3")
NUM = 100
NUM_CORRECTED = 50
MOST_DEMONSTRATIONS = 10_000
EPISODES = 200
BASE, EXPERT, FINETUNED = "base", "expert", "finetuned"

Arm = Callable[[str, int, float, Path], Policy]
"""Function from the task, the seed, the seconds to use and a folder, beside those of the base, to a policy."""


def train(data: Sequence[Path], seed: int, folder: Path) -> Policy:
    """Train with the default options."""
    return act_kit.train(list(data), folder, seed=seed, workers=1, overwrite=True)


def base(folder: Path) -> Path:
    """Return the run of the base, given the folder of any arm."""
    return folder.parent / BASE


def seconds_of_base(folder: Path) -> Path:
    """Return the file with the seconds that the base took, given the folder of any arm."""
    return folder.parent / "base_seconds.txt"


def demonstrations(folder: Path) -> Path:
    """Return the demonstrations of the base, given the folder of any arm."""
    return folder.parent / "data"


def finetuned(task: str, seed: int, seconds: float, folder: Path, *overrides: str) -> Policy:
    """Fine-tune the base."""
    minutes = seconds / 60
    return act_kit.finetune(
        base(folder), folder, overrides=overrides, minutes=minutes, seed=seed, workers=1, overwrite=True
    )


def whole_policy_finetuned(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Fine-tune all of the base."""
    return finetuned(task, seed, seconds, folder, "trains=policy")


def best_of_several(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Train further seeds while there is time, and choose by their best selection rollouts."""
    ends_at = time.perf_counter() + seconds
    runs = [base(folder)]
    longest_s = 0.0
    while time.perf_counter() + longest_s < ends_at:
        began = time.perf_counter()
        runs.append(folder / f"seed-{len(runs)}")
        train([demonstrations(folder)], 1000 * seed + len(runs), runs[-1])
        longest_s = max(longest_s, time.perf_counter() - began)
    best = max(runs, key=lambda run: max(value for _, value in series(run, "eval/success")))
    return Policy.load(best)


def more_demonstrations(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Train on more demonstrations: the time of a training grows with the square root of their number."""
    base_s = float(seconds_of_base(folder).read_text())
    num = min(MOST_DEMONSTRATIONS, round(NUM * ((base_s + seconds) / base_s) ** 2))
    return train([experiment.collect(folder / "data", task, num, 10_000 + seed)], seed, folder / "run")


def dagger(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Correct the policy and train on all data, while there is time."""
    ends_at = time.perf_counter() + seconds
    data, newest = [demonstrations(folder)], base(folder)
    longest_s = 0.0
    while time.perf_counter() + longest_s < ends_at:
        began = time.perf_counter()
        corrected = folder / f"data-{len(data)}"
        act_kit.collect(
            task,
            NUM_CORRECTED,
            seed=1000 * seed + len(data),
            out=corrected,
            demonstrator="policy",
            overrides=[f"dagger.run={newest}"],
            workers=1,
            overwrite=True,
        )
        data.append(corrected)
        newest = folder / f"run-{len(data)}"
        train(data, seed, newest)
        longest_s = max(longest_s, time.perf_counter() - began)
    return Policy.load(newest)


ARMS: dict[str, Arm] = {
    FINETUNED: finetuned,
    "whole policy finetuned": whole_policy_finetuned,
    "best of several": best_of_several,
    "more demonstrations": more_demonstrations,
    "DAgger": dagger,
}


def measure(job: Job, out: Path, minutes: float) -> list[Row]:
    """Evaluate the expert, the base, or the policy of an arm that begins with the base; the note has its minutes."""
    (task,) = job.tasks
    folder = out / task / str(job.seed) / job.arm.replace(" ", "-")
    if job.arm == EXPERT:
        return [Row.of(EXPERT, job.seed, experiment.evaluate(ExpertAgent(), task, 300 + job.seed, EPISODES))]
    policy = train_base(task, job.seed, folder)
    began = time.perf_counter()
    if job.arm != BASE:
        shutil.rmtree(folder, ignore_errors=True)
        policy = ARMS[job.arm](task, job.seed, 60 * minutes, folder)
    spent = f"{(time.perf_counter() - began) / 60:.1f}"
    return [Row.of(job.arm, job.seed, experiment.evaluate(policy, task, 300 + job.seed, EPISODES), spent)]


def train_base(task: str, seed: int, folder: Path) -> Policy:
    """Train the base, unless it is there; the arms that need it wait for each other."""
    with experiment.locked(base(folder)):
        if not seconds_of_base(folder).exists():
            began = time.perf_counter()
            train([experiment.collect(demonstrations(folder), task, NUM, seed)], seed, base(folder))
            seconds_of_base(folder).write_text(f"{time.perf_counter() - began:.0f}")
        return Policy.load(base(folder))


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print the successes of each arm by task and seed, their mean and its differences, and the minutes."""
    names = [task.removesuffix("-v3") for task in tasks]
    experiment.print_head(["", *names, "mean, %", "against the base", "finetuned against it", "minutes"])
    bases = [experiment.choose(rows, BASE, task) for task in tasks]
    finetuned_rows = [experiment.choose(rows, FINETUNED, task) for task in tasks]
    for arm in (EXPERT, BASE, *ARMS):
        ours = [experiment.choose(rows, arm, task) for task in tasks]
        if not any(ours):
            continue
        gains = ["" if arm == BASE else experiment.gain_cell(ours, bases)]
        gains.append("" if arm == FINETUNED else experiment.gain_cell(finetuned_rows, ours))
        minutes = [float(row.note) for of_task in ours for row in of_task if arm in ARMS]
        spent = f"{np.mean(minutes):.1f}" if minutes else ""
        experiment.print_row([arm, *map(experiment.by_seed, ours), experiment.mean_cell(ours), *gains, spent])


def main() -> None:
    """Parse the command line and run."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--minutes", type=float, default=15)

    arguments = experiment.parse_arguments(__doc__, tasks=TASKS, seeds=range(3), arms=list(ARMS), add=add)
    jobs = experiment.jobs_of_tasks(arguments, (EXPERT, BASE, *arguments.only))
    settings = {"minutes": arguments.minutes}
    rows = experiment.run(arguments, jobs, partial(measure, minutes=arguments.minutes), settings=settings)
    print_table(rows, arguments.tasks)


if __name__ == "__main__":
    main()
