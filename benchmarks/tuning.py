"""What matters for ACT where contact does: one change at a time to the defaults, several seeds each.

The five tasks are of contact; others can be named.

    python -m benchmarks.tuning --out tuning
    python -m benchmarks.tuning --out tuning --only "without velocities" "without relative positions"
    python -m benchmarks.tuning --out tuning --tasks reach-v3 reach-wall-v3 door-lock-v3 --only "no noise in collection"
    python -m benchmarks.tuning --out tuning --table

Every training has 50 demonstrations, collected with the seed of the training, and the default options but for the
change. Its last checkpoint (not a chosen one) is evaluated from 100 test initial states, those of evaluation seed
100 + training seed. Changes of chunking are evaluated on the checkpoints of the
defaults. The results are a file (``benchmarks/experiment.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import experiment
from benchmarks.experiment import Job, Row

NUM_DEMONSTRATIONS = 50
DEFAULTS = "defaults"
TASKS = ("peg-insert-side-v3", "soccer-v3", "box-close-v3", "push-back-v3", "stick-pull-v3")

DATA: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "no noise": ("noise=0",),
    "noise 0.3": ("noise=0.3",),
    "10 steps after success": ("steps_after_success=10",),
}
TRAININGS: dict[str, tuple[str, tuple[str, ...]]] = {
    DEFAULTS: ("defaults", ()),
    "without velocities": ("defaults", ("policy.velocities=false",)),
    "without relative positions": ("defaults", ("policy.relative_positions=false",)),
    "with the CVAE": ("defaults", ("policy.cvae_layers=1",)),
    "no noise in collection": ("no noise", ()),
    "noise 0.3 in collection": ("noise 0.3", ()),
    "10 steps after success": ("10 steps after success", ()),
    "at most 10 % after success": ("defaults", ("trainer.max_share_after_success=0.1",)),
    "half the steps": ("defaults", ("trainer.steps_per_root=37.5",)),
    "twice the steps": ("defaults", ("trainer.steps_per_root=150",)),
    "batches of 128": ("defaults", ("trainer.batch_size=128",)),
    "learning rate 5e-4": ("defaults", ("trainer.lr=5e-4",)),
    "moving average 0.995": ("defaults", ("trainer.ema_decay=0.995",)),
    "decoder of 2 layers": ("defaults", ("policy.decoder_layers=2",)),
    "chunks of 8": ("defaults", ("policy.chunk_size=8",)),
    "chunks of 32": ("defaults", ("policy.chunk_size=32",)),
    "flow matching": ("defaults", ("policy=flow_small",)),
    "flow matching, twice the steps": ("defaults", ("policy=flow_small", "trainer.steps_per_root=150")),
    "minimal iterative policy": ("defaults", ("policy=mip_small",)),
}
CHUNKINGS: dict[str, dict[str, Any]] = {
    "execute 1": {"n_action_steps": 1},
    "execute 4": {"n_action_steps": 4},
    "execute 8": {"n_action_steps": 8},
    "execute 16": {"n_action_steps": 16},
    "ensembling": {"temporal_ensemble": True},
}


def measure(job: Job, out: Path) -> list[Row]:
    """Train one policy and evaluate it; for a change of chunking, evaluate the policy of the defaults."""
    trained = job if job.arm in TRAININGS else replace(job, arm=DEFAULTS)
    data_name, changes = TRAININGS[trained.arm]
    (task,) = job.tasks
    folder = out / "data" / f"{data_name.replace(' ', '-')}-{task}-{job.seed}"
    data = experiment.collect(folder, task, NUM_DEMONSTRATIONS, job.seed, overrides=DATA[data_name])
    run, overrides = out / "runs" / trained.name, ["selection.num_evaluations=0", *changes]
    policy = experiment.train(data, run, job.seed, overrides)
    chunking = CHUNKINGS.get(job.arm, {})
    return [Row.of(job.arm, job.seed, experiment.evaluate(policy, task, 100 + job.seed, **chunking))]


def print_table(rows: Sequence[Row], tasks: Sequence[str], *, at_end: bool) -> None:
    """Print successes of every seed by setting and task, their mean, and its difference from the defaults'."""
    column = "success_at_end" if at_end else "success_once"
    names = ["at the last step" if at_end else "at any step", *(task.removesuffix("-v3") for task in tasks)]
    experiment.print_head([*names, "all, %", "against the defaults"])
    defaults = [experiment.choose(rows, DEFAULTS, task) for task in tasks]
    for arm in (DEFAULTS, *CHUNKINGS, *list(TRAININGS)[1:]):
        ours = [experiment.choose(rows, arm, task) for task in tasks]
        if not any(ours):
            continue
        gain = "" if arm == DEFAULTS else experiment.gain_cell(ours, defaults, at_end=at_end)
        by_seed = [experiment.by_seed(of_task, column) for of_task in ours]
        experiment.print_row([arm, *by_seed, experiment.mean_cell(ours, column), gain])


def main() -> None:
    """Parse the command line and run."""
    arguments = experiment.parse_arguments(__doc__, tasks=TASKS, seeds=range(5), arms=[*TRAININGS, *CHUNKINGS])
    jobs = experiment.jobs_of_tasks(arguments, dict.fromkeys([DEFAULTS, *arguments.only]))
    rows = experiment.run(arguments, jobs, measure)
    print_table(rows, arguments.tasks, at_end=False)
    print()
    print_table(rows, arguments.tasks, at_end=True)


if __name__ == "__main__":
    main()
