"""What matters for ACT where contact does: one change at a time to the defaults, on five tasks, several seeds each.

    python -m benchmarks.tuning --out tuning
    python -m benchmarks.tuning --out tuning --only "without velocities" "without relative positions"
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
    "clean": (),
    "noise 0.1": ("--noise", "0.1"),
    "noise 0.3": ("--noise", "0.3"),
    "10 steps after success": ("steps_after_success=10",),
}
TRAININGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "defaults": ("clean", ()),
    "without velocities": ("clean", ("policy.velocities=false",)),
    "without relative positions": ("clean", ("policy.relative_positions=false",)),
    "with the CVAE": ("clean", ("policy.cvae_layers=1",)),
    "noise 0.1 in collection": ("noise 0.1", ()),
    "noise 0.3 in collection": ("noise 0.3", ()),
    "10 steps after success": ("10 steps after success", ()),
    "at most 10 % after success": ("clean", ("trainer.max_share_after_success=0.1",)),
    "half the steps": ("clean", ("trainer.steps=3600",)),
    "twice the steps": ("clean", ("trainer.steps=14400",)),
    "batches of 128": ("clean", ("trainer.batch_size=128",)),
    "learning rate 5e-4": ("clean", ("trainer.lr=5e-4",)),
    "moving average 0.995": ("clean", ("trainer.ema_decay=0.995",)),
    "decoder of 2 layers": ("clean", ("policy.decoder_layers=2",)),
    "chunks of 8": ("clean", ("policy.chunk_size=8",)),
    "chunks of 32": ("clean", ("policy.chunk_size=32",)),
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


def table(out: Path) -> None:
    """Print successes of every seed by setting and task, their mean, and its difference from the defaults'."""
    settings = ["defaults", *CHUNKINGS, *(name for name in TRAININGS if name != "defaults")]
    print("| | " + " | ".join(task.removesuffix("-v3") for task in TASKS) + " | all | against the defaults |")
    print("|---|" + "---|" * (len(TASKS) + 2))
    defaults = [_successes(out, "defaults", task) for task in TASKS]
    for setting in settings:
        measured = [_successes(out, setting, task) for task in TASKS]
        cells = []
        for of_task in measured:
            cells.append(" ".join(str(of_seed.sum()) for of_seed in of_task.values()))
        seeds = sorted(set.intersection(*map(set, (*measured, *defaults))))
        cells += ["", ""]
        if len(seeds) > 1:
            ours, theirs = _of_seeds(measured, seeds), _of_seeds(defaults, seeds)
            mean, gain = seeds_mean(ours), compare_seeds(theirs, ours, same_init_states=True, level=0.05)
            cells[-2] = f"{100 * mean.value:.1f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}] %"
            if setting != "defaults":
                cells[-1] = f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        print(f"| {setting} | " + " | ".join(cells) + " |")


def _of_seeds(tasks: Sequence[Mapping[int, np.ndarray]], seeds: Sequence[int]) -> list[np.ndarray]:
    """Return the successes of each task, bool (seeds, 100)."""
    return [np.stack([of_task[seed] for seed in seeds]) for of_task in tasks]


def _successes(out: Path, setting: str, task: str) -> dict[int, np.ndarray]:
    """Return the successes, bool (100,), of every training seed that was measured."""
    found = {}
    for folder in sorted((out / "results").glob(f"{setting.replace(' ', '-')}-{task}-*")):
        found[int(folder.name.rpartition("-")[2])] = read_evaluation(folder).successes
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), metavar="NAME", help="the defaults and these")
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="trainings at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        with ThreadPoolExecutor(arguments.side_by_side) as pool:
            for seed in arguments.seeds:
                names = list(dict.fromkeys(["defaults", *(arguments.only or TRAININGS)]))
                data_names = dict.fromkeys(TRAININGS[name][0] for name in names)
                jobs = [(task, seed, data, arguments.out) for data in data_names for task in TASKS]
                list(pool.map(lambda job: collect(*job), jobs))
                jobs = [(task, seed, name, arguments.out) for name in names for task in TASKS]
                list(pool.map(lambda job: measure(*job), jobs))
    table(arguments.out)


if __name__ == "__main__":
    main()
