"""What matters for ACT where contact does: one change at a time to the defaults, several seeds each.

The five tasks are of contact; others can be named.

    python -m benchmarks.tuning --out tuning
    python -m benchmarks.tuning --out tuning --only "without velocities" "without relative positions"
    python -m benchmarks.tuning --out tuning --tasks reach-v3 reach-wall-v3 door-lock-v3 --only "no noise in collection"
    python -m benchmarks.tuning --out tuning --table

Every training has 50 demonstrations, collected with the seed of the training, and the default options but for the
change. Its last checkpoint (not a chosen one) is evaluated from 100 new initial states that no figure elsewhere is
measured on, those of evaluation seed 100 + training seed. Changes of chunking are evaluated on the checkpoints of the
defaults. What is finished is kept: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from act_kit.eval.files import read_evaluation
from act_kit.statistics import compare_seeds, seeds_mean
from benchmarks.command import act

TASKS = ("peg-insert-side-v3", "soccer-v3", "box-close-v3", "push-back-v3", "stick-pull-v3")

DATA = {
    "defaults": (),
    "no noise": ("--noise", "0"),
    "noise 0.3": ("--noise", "0.3"),
    "10 steps after success": ("steps_after_success=10",),
}
TRAININGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "defaults": ("defaults", ()),
    "without velocities": ("defaults", ("policy.velocities=false",)),
    "without relative positions": ("defaults", ("policy.relative_positions=false",)),
    "with the CVAE": ("defaults", ("policy.cvae_layers=1",)),
    "no noise in collection": ("no noise", ()),
    "noise 0.3 in collection": ("noise 0.3", ()),
    "10 steps after success": ("10 steps after success", ()),
    "at most 10 % after success": ("defaults", ("trainer.max_share_after_success=0.1",)),
    "half the steps": ("defaults", ("trainer.steps=3600",)),
    "twice the steps": ("defaults", ("trainer.steps=14400",)),
    "batches of 128": ("defaults", ("trainer.batch_size=128",)),
    "learning rate 5e-4": ("defaults", ("trainer.lr=5e-4",)),
    "moving average 0.995": ("defaults", ("trainer.ema_decay=0.995",)),
    "decoder of 2 layers": ("defaults", ("policy.decoder_layers=2",)),
    "chunks of 8": ("defaults", ("policy.chunk_size=8",)),
    "chunks of 32": ("defaults", ("policy.chunk_size=32",)),
    "flow matching": ("defaults", ("policy=flow_small",)),
    "flow matching, twice the steps": ("defaults", ("policy=flow_small", "trainer.steps=14400")),
    "minimal iterative policy": ("defaults", ("policy=mip_small",)),
}
CHUNKINGS = {
    "execute 1": ("--n-action-steps", "1"),
    "execute 4": ("--n-action-steps", "4"),
    "execute 8": ("--n-action-steps", "8"),
    "execute 16": ("--n-action-steps", "16"),
    "ensembling": ("--temporal-ensemble",),
}


def measure(task: str, seed: int, name: str, out: Path) -> None:
    """Train one policy and evaluate it; of the defaults, every way of executing it."""
    data_name, changes = TRAININGS[name]
    data = out / "data" / data_name.replace(" ", "-") / f"{task}-{seed}"
    folder = out / "runs" / name.replace(" ", "-") / f"{task}-{seed}"
    options = ("--seed", seed, "--workers", 1, "selection.num_evaluations=0", *changes)
    act("train", "--data", data, "--out", folder, "--resume", *options)
    chunkings = {"defaults": (), **CHUNKINGS} if name == "defaults" else {name: ()}
    for chunking, flags in chunkings.items():
        result = out / "results" / f"{chunking.replace(' ', '-')}-{task}-{seed}"
        if not (result / "summary.json").exists():
            baselines = ("demonstrated_episodes=0", "baseline_episodes=0")
            act(
                "eval", folder, "--out", result, "--overwrite", "--workers", 1, "--seed", 100 + seed, *flags, *baselines
            )


def collect(task: str, seed: int, data_name: str, out: Path) -> None:
    """Collect one dataset."""
    folder = out / "data" / data_name.replace(" ", "-") / f"{task}-{seed}"
    if not folder.exists():
        act("collect", "--task", task, "--n", 50, "--seed", seed, "--out", folder, "--workers", 1, *DATA[data_name])


def table(out: Path, tasks: Sequence[str]) -> None:
    """Print successes of every seed by setting and task, their mean, and its difference from the defaults'."""
    settings = ["defaults", *CHUNKINGS, *(name for name in TRAININGS if name != "defaults")]
    columns = [*(task.removesuffix("-v3") for task in tasks), "all", "against the defaults"]
    columns += ["at the last step", "against the defaults"]
    print(f"| | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for setting in settings:
        once = [_successes(out, setting, task, "success_once") for task in tasks]
        cells = []
        for of_task in once:
            cells.append(" ".join(str(of_seed.sum()) for of_seed in of_task.values()))
        cells += _mean_and_gain(out, setting, tasks, "success_once")
        cells += _mean_and_gain(out, setting, tasks, "success_at_end")
        print(f"| {setting} | " + " | ".join(cells) + " |")


def _mean_and_gain(out: Path, setting: str, tasks: Sequence[str], column: str) -> list[str]:
    """Return the mean success of a setting over tasks and seeds and its difference from the defaults' as text."""
    measured = [_successes(out, setting, task, column) for task in tasks]
    defaults = [_successes(out, "defaults", task, column) for task in tasks]
    seeds = sorted(set.intersection(*map(set, (*measured, *defaults))))
    if len(seeds) < 2:
        return ["", ""]
    ours, theirs = _of_seeds(measured, seeds), _of_seeds(defaults, seeds)
    mean = seeds_mean(ours)
    text = f"{100 * mean.value:.1f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}] %"
    if setting == "defaults":
        return [text, ""]
    gain = compare_seeds(theirs, ours, same_init_states=True, level=0.05)
    return [text, f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"]


def _of_seeds(tasks: Sequence[Mapping[int, np.ndarray]], seeds: Sequence[int]) -> list[np.ndarray]:
    """Return the successes of each task, bool (seeds, 100)."""
    return [np.stack([of_task[seed] for seed in seeds]) for of_task in tasks]


def _successes(out: Path, setting: str, task: str, column: str) -> dict[int, np.ndarray]:
    """Return a column of successes, bool (100,), of every training seed that was measured."""
    found = {}
    for folder in sorted((out / "results").glob(f"{setting.replace(' ', '-')}-{task}-*")):
        found[int(folder.name.rpartition("-")[2])] = np.array(read_evaluation(folder).column(column), dtype=bool)
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), metavar="NAME", help="the defaults and these")
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="trainings at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        with ThreadPoolExecutor(arguments.side_by_side) as pool:
            for seed in arguments.seeds:
                names = list(dict.fromkeys(["defaults", *(arguments.only or TRAININGS)]))
                data_names = dict.fromkeys(TRAININGS[name][0] for name in names)
                jobs = [(task, seed, data, arguments.out) for data in data_names for task in arguments.tasks]
                list(pool.map(lambda job: collect(*job), jobs))
                jobs = [(task, seed, name, arguments.out) for name in names for task in arguments.tasks]
                list(pool.map(lambda job: measure(*job), jobs))
    table(arguments.out, arguments.tasks)


if __name__ == "__main__":
    main()
