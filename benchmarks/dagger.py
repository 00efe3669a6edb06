"""What the correction of a policy (DAgger) gains, beside as many further demonstrations.

    python -m benchmarks.dagger --out dagger
    python -m benchmarks.dagger --out dagger --tasks push-v3 --only "30 demonstrations more"
    python -m benchmarks.dagger --out dagger --table

A policy is trained on 10 demonstrations. Then the scripted expert corrects 30 of its attempts, of which it executes
some share itself, and a policy is trained on both; or on 30 further demonstrations. The data have the seed of the
training. Trainings have the default options; the last checkpoint is evaluated from 100 new initial states, those of
evaluation seed 100 + training seed. The results are a file (``benchmarks/experiment.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import experiment
from benchmarks.experiment import Job, Row

TASKS = ("push-v3", "pick-place-v3")
FEW, MORE = 10, 30
BASE = f"{FEW} demonstrations"
DEMONSTRATIONS = f"{MORE} demonstrations more"
CORRECTIONS = {
    f"{MORE} attempts, half by the expert": (0.5, 0.5),
    f"{MORE} attempts, half by the expert, decreasing to none": (0.5, 0.0),
    f"{MORE} attempts, all by the expert, decreasing to none": (1.0, 0.0),
}
"""Shares of the segments that the expert executes in the first and in the last attempt."""

ARMS = (DEMONSTRATIONS, *CORRECTIONS)


def measure(job: Job, out: Path) -> list[Row]:
    """Collect what the arm adds to the few demonstrations, train on both and evaluate the policy."""
    (task,) = job.tasks
    overrides = ["selection.num_evaluations=0"]
    data = [experiment.collect(out / "data" / f"few-{task}-{job.seed}", task, FEW, job.seed)]
    folder = out / "data" / job.name
    if job.arm == DEMONSTRATIONS:
        data.append(experiment.collect(folder, task, MORE, 1000 + job.seed))
    elif job.arm in CORRECTIONS:
        base = out / "runs" / replace(job, arm=BASE).name
        experiment.train(data, base, job.seed, overrides, allow_low_diversity=True)
        first, last = CORRECTIONS[job.arm]
        mixture = [f"dagger.run={base}", f"dagger.expert_first={first}", f"dagger.expert_last={last}"]
        data.append(experiment.collect(folder, task, MORE, job.seed, demonstrator="policy", overrides=mixture))
    policy = experiment.train(data, out / "runs" / job.name, job.seed, overrides, allow_low_diversity=True)
    return [Row.of(job.arm, job.seed, experiment.evaluate(policy, task, 100 + job.seed))]


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print successes of every seed by arm and task, their mean, and its difference from further demonstrations."""
    names = ["data", *(task.removesuffix("-v3") for task in tasks), "all, %", "against demonstrations"]
    experiment.print_head(names)
    demonstrations = [experiment.choose(rows, DEMONSTRATIONS, task) for task in tasks]
    for arm in (BASE, *ARMS):
        ours = [experiment.choose(rows, arm, task) for task in tasks]
        gain = "" if arm == DEMONSTRATIONS else experiment.gain_cell(ours, demonstrations)
        experiment.print_row([arm, *map(experiment.by_seed, ours), experiment.mean_cell(ours), gain])


def main() -> None:
    """Parse the command line and run."""
    arguments = experiment.parse_arguments(__doc__, tasks=TASKS, seeds=range(3), arms=list(ARMS))
    jobs = experiment.jobs_of_tasks(arguments, (BASE, *arguments.only))
    print_table(experiment.run(arguments, jobs, measure), arguments.tasks)


if __name__ == "__main__":
    main()
