"""Policies from images: the preset ``act_keypoints``, of one and of several tasks, and one change to it at a time.

    python -m benchmarks.images --out images
    python -m benchmarks.images --out images --tasks reach-v3 --seeds 0 --only "whole images" "96 px"
    python -m benchmarks.images --out images --seeds 0 --only MT10
    python -m benchmarks.images --out images --table

Every training has 50 demonstrations of a task, collected and rendered with the seed of the training. Its last
checkpoint is evaluated from 100 test initial states of each task, those of evaluation seed 100 + training seed. The
note of a row has the minutes of one process for rendering, training and evaluation, of all tasks of the policy. The
results are a file (``benchmarks/experiment.py``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import act_kit
from act_kit.sim.tasks import TASKS as ALL_TASKS
from benchmarks import experiment
from benchmarks.experiment import Job, Row
from benchmarks.fifty import BENCHMARKS, GROUPS

NUM_DEMONSTRATIONS = 50
PRESET = "preset"
TASKS = ("reach-v3", "push-v3", "pick-place-v3", "peg-insert-side-v3", "shelf-place-v3", "door-open-v3")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A change to the preset.

    Attributes:
        cameras: Cameras of the policy.
        size: Height and width of the images, in pixels.
        look: How the images are drawn.
        overrides: Options of the training besides.
    """

    cameras: tuple[str, ...] = ("corner", "corner2")
    size: int = 64
    look: str = "closeup"
    overrides: tuple[str, ...] = ()


ARMS = {
    PRESET: Arm(),
    "whole images": Arm(look="fast"),
    "whole images of 128 px": Arm(look="fast", size=128),
    "96 px": Arm(size=96),
    "from above and the side": Arm(cameras=("topview", "corner2")),
    "three cameras": Arm(cameras=("topview", "corner", "corner2")),
    "one camera": Arm(cameras=("corner2",)),
    "4 x 4 tokens": Arm(overrides=("policy=act_image_small",)),
    "position weight 10": Arm(overrides=("policy.position_weight=10",)),
    "without the previous frame": Arm(overrides=("policy.velocities=false",)),
    "moving average 0.995": Arm(overrides=("trainer.ema_decay=0.995",)),
    "execute 2": Arm(overrides=("chunking.n_action_steps=2",)),
    "twice the steps": Arm(overrides=("trainer.steps_per_root=80",)),
    "bfloat16": Arm(overrides=("compute.precision=bfloat16",)),
}

SEVERAL = "bfloat16"
"""Arm of the policies of several tasks."""


def measure(job: Job, out: Path) -> list[Row]:
    """Render the demonstrations, train a policy on the images and evaluate it."""
    arm = ARMS[SEVERAL if job.arm in BENCHMARKS else job.arm]
    views = f"{arm.look}-{arm.size}-{'-'.join(arm.cameras)}"
    began = time.monotonic()
    data: list[Path] = []
    for task in job.tasks:
        folder = out / "data" / f"{views}-{task}-{job.seed}"
        data.append(experiment.collect(folder, task, NUM_DEMONSTRATIONS, job.seed))
        with experiment.locked(Path(f"{folder}-images")):
            act_kit.render(folder, cameras=arm.cameras, size=arm.size, look=arm.look, workers=1)
    rendered = time.monotonic()
    cameras = f"policy.cameras=[{','.join(arm.cameras)}]"
    overrides = ["policy=act_keypoints", "selection.num_evaluations=0", *arm.overrides, cameras]
    policy = experiment.train(data, out / "runs" / job.name, job.seed, overrides)
    trained = time.monotonic()
    evaluations = experiment.evaluate_policy(policy, 100 + job.seed)
    times = (rendered - began, trained - rendered, time.monotonic() - trained)
    note = " ".join(f"{seconds / 60:.1f}" for seconds in times)
    return [Row.of(job.arm, job.seed, evaluation, note=note) for evaluation in evaluations]


def choose_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the policies of one task, with the preset beside every change to it, and those of several tasks."""
    arms = [arm for arm in arguments.only if arm in ARMS]
    jobs = experiment.jobs_of_tasks(arguments, dict.fromkeys([PRESET, *arms])) if arms else []
    for seed in arguments.seeds:
        jobs += [Job(name, tasks, seed) for name, tasks in BENCHMARKS.items() if name in arguments.only]
    return jobs


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print successes of every seed by arm and task, their mean, and its difference from the preset's."""
    names = ["", *(task.removesuffix("-v3") for task in tasks), "all, %", "against the preset"]
    experiment.print_head([*names, "at the last step, %"])
    preset = [experiment.choose(rows, PRESET, task) for task in tasks]
    for arm in ARMS:
        ours = [experiment.choose(rows, arm, task) for task in tasks]
        gain = "" if arm == PRESET else experiment.gain_cell(ours, preset)
        cells = [
            arm,
            *map(experiment.by_seed, ours),
            experiment.mean_cell(ours),
            gain,
            experiment.mean_cell(ours, "success_at_end"),
        ]
        experiment.print_row(cells)


def print_policies_of_several_tasks(rows: Sequence[Row]) -> None:
    """Print the successes of every seed by task, and the means of the groups of tasks."""
    for name, tasks in BENCHMARKS.items():
        if not experiment.choose(rows, name, tasks[0]):
            continue
        print()
        experiment.print_head([name, "difficulty", "success", "at the end"])
        for task in tasks:
            chosen = experiment.choose(rows, name, task)
            cells = [experiment.by_seed(chosen), experiment.by_seed(chosen, "success_at_end")]
            experiment.print_row([task.removesuffix("-v3"), ALL_TASKS[task].group, *cells])
        for group in (*GROUPS, "all"):
            of_group = [task for task in tasks if group in (ALL_TASKS[task].group, "all")]
            by_task = [experiment.choose(rows, name, task) for task in of_group]
            cells = [experiment.mean_cell(by_task), experiment.mean_cell(by_task, "success_at_end")]
            experiment.print_row([f"mean of {len(of_group)}, %", group, *cells])


def main() -> None:
    """Parse the command line and run."""
    arguments = experiment.parse_arguments(__doc__, tasks=TASKS, seeds=range(3), arms=[*ARMS, *BENCHMARKS])
    rows = experiment.run(arguments, choose_jobs(arguments), measure)
    print_table(rows, arguments.tasks)
    print_policies_of_several_tasks(rows)


if __name__ == "__main__":
    main()
