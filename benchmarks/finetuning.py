"""What fine-tuning buys, beside what else can be done with a policy's demonstrations in the same time.

    python -m benchmarks.finetuning --out finetuning                          many hours on two cores
    python -m benchmarks.finetuning --out finetuning --tasks soccer-v3 --seeds 0 --only finetuned
    python -m benchmarks.finetuning --out finetuning --table                  print what there is, and measure nothing

Base: 100 demonstrations and the default training. The other arms get ``--minutes`` of wall time more than the base, on
one thread and one simulation process:

- finetuned: ``act finetune`` on the base;
- best of several: further training seeds on the same demonstrations, of which selection rollouts choose the best;
- more demonstrations: as many as can be collected and trained on in that time, from the time that the base took;
- DAgger: rounds of 50 corrected attempts and a training on all data so far.

Every policy is evaluated from the same 200 new initial states. What is finished is kept: stopped, the same command goes
on, and an arm that was stopped begins again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import act_kit
from act_kit.files import write_json
from act_kit.metrics import series
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import ExpertAgent
from act_kit.statistics import compare_seeds, seeds_mean

TASKS = ("peg-insert-side-v3", "soccer-v3", "box-close-v3", "basketball-v3", "sweep-into-v3")
NUM = 100
NUM_CORRECTED = 50
MOST_DEMONSTRATIONS = 10_000

Arm = Callable[[str, int, float, Path], Policy]
"""Function from the task, the seed, the seconds to use and a folder to a policy."""


def train(data: Sequence[Path], seed: int, folder: Path) -> Policy:
    """Train with the default options."""
    return act_kit.train(list(data), folder, seed=seed, workers=1, overwrite=True)


def collect(task: str, num: int, seed: int, folder: Path) -> Path:
    """Collect demonstrations, unless they are there."""
    act_kit.collect(task, num, seed=seed, out=folder, workers=1, resume=True)
    return folder


def base(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Train on the demonstrations that all arms share; ``seconds`` are of no matter."""
    return train([collect(task, NUM, seed, data_of(folder))], seed, folder)


def data_of(folder: Path) -> Path:
    """Return the demonstrations of the base, given the folder of any arm."""
    return folder.parent / "data"


def finetuned(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Fine-tune the base."""
    minutes = seconds / 60
    return act_kit.finetune(folder.parent / "base", folder, minutes=minutes, seed=seed, workers=1, overwrite=True)


def best_of_several(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Train further seeds while there is time, and choose by their best selection rollouts."""
    ends_at = time.perf_counter() + seconds
    runs = [folder.parent / "base"]
    longest_s = 0.0
    while time.perf_counter() + longest_s < ends_at:
        began = time.perf_counter()
        runs.append(folder / f"seed-{len(runs)}")
        train([data_of(folder)], 1000 * seed + len(runs), runs[-1])
        longest_s = max(longest_s, time.perf_counter() - began)
    best = max(runs, key=lambda run: max(value for _, value in series(run, "eval/success")))
    return Policy.load(best)


def more_demonstrations(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Train on more demonstrations: the time of a training grows with the square root of their number."""
    base_s = json.loads((folder.parent / "base.json").read_text())["seconds"]
    num = min(MOST_DEMONSTRATIONS, round(NUM * ((base_s + seconds) / base_s) ** 2))
    return train([collect(task, num, 10_000 + seed, folder / "data")], seed, folder / "run")


def dagger(task: str, seed: int, seconds: float, folder: Path) -> Policy:
    """Correct the policy and train on all data, while there is time."""
    ends_at = time.perf_counter() + seconds
    data, run = [data_of(folder)], folder.parent / "base"
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
            source=run,
            workers=1,
            overwrite=True,
        )
        data.append(corrected)
        run = folder / f"run-{len(data)}"
        train(data, seed, run)
        longest_s = max(longest_s, time.perf_counter() - began)
    return Policy.load(run)


ARMS: dict[str, Arm] = {
    "base": base,
    "finetuned": finetuned,
    "best of several": best_of_several,
    "more demonstrations": more_demonstrations,
    "DAgger": dagger,
}


def measure(arm: str, task: str, seed: int, minutes: float, out: Path) -> None:
    """Make and evaluate the policy of an arm, unless it is done; of the base, evaluate the expert too."""
    folder = out / task / str(seed) / arm.replace(" ", "-")
    result = folder.with_suffix(".json")
    if result.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    policy = ARMS[arm](task, seed, 60 * minutes, folder)
    seconds = time.perf_counter() - began
    successes = {"success": evaluate(policy, task, seed)}
    if arm == "base":
        successes["expert"] = evaluate(ExpertAgent(), task, seed)
    write_json(result, {**successes, "seconds": seconds})
    print(f"{task} {seed} {arm}: {sum(successes['success'])} of 200 in {seconds / 60:.1f} min", flush=True)


def evaluate(agent: Policy | ExpertAgent, task: str, seed: int) -> list[bool]:
    """Return the successes from 200 new initial states."""
    overrides = ["baseline_episodes=0", "demonstrated_episodes=0"]
    evaluation = act_kit.evaluate(agent, task, episodes=200, seed=300 + seed, overrides=overrides, workers=1)
    successes: list[bool] = evaluation.successes.tolist()
    return successes


def measure_seed(task: str, seed: int, arms: Sequence[str], minutes: float, out: Path) -> None:
    """Measure the base, then the arms that begin with it."""
    for arm in dict.fromkeys(["base", *arms]):
        measure(arm, task, seed, minutes, out)


def table(out: Path, tasks: Sequence[str]) -> None:
    """Print the success of each arm by task, the mean, its difference from the base's, and the minutes."""
    names = (task.removesuffix("-v3") for task in tasks)
    print(f"| | {' | '.join(names)} | mean, % | against the base | minutes |")
    print("| --- " * (len(tasks) + 4) + "|")
    for arm in ("expert", *ARMS):
        rows = {task: read(out, arm, task) for task in tasks}
        references = {task: read(out, "base", task) for task in tasks}
        cells: list[str] = []
        for of_task in rows.values():
            cells.append(" ".join(f"{100 * np.mean(row['success']):.1f}" for row in of_task.values()))
        seeds = sorted(set.intersection(*map(set, (*rows.values(), *references.values()))))
        mean = gain = ""
        if len(seeds) > 1:
            ours = [np.array([of_task[seed]["success"] for seed in seeds], dtype=bool) for of_task in rows.values()]
            theirs = [np.array([each[seed]["success"] for seed in seeds], dtype=bool) for each in references.values()]
            estimate = seeds_mean(ours)
            mean = f"{100 * estimate.value:.1f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
            difference = compare_seeds(theirs, ours, same_init_states=True, level=0.05)
            gain = f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
        minutes = [row["seconds"] / 60 for of_task in rows.values() for row in of_task.values()]
        spent = f"{np.mean(minutes):.1f}" if minutes and arm != "expert" else ""
        print(f"| {arm} | {' | '.join(cells)} | {mean} | {gain if arm != 'base' else ''} | {spent} |")


def read(out: Path, arm: str, task: str) -> dict[int, dict[str, Any]]:
    """Read the results of an arm by seed; the expert's are beside those of the base."""
    found: dict[int, dict[str, Any]] = {}
    name = "base" if arm == "expert" else arm.replace(" ", "-")
    for path in sorted((out / task).glob(f"*/{name}.json")):
        values = json.loads(path.read_text())
        found[int(path.parent.name)] = {**values, "success": values["expert"]} if arm == "expert" else values
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), metavar="ARM", help="the base and these")
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="policies at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes
    if not arguments.table:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.side_by_side, mp_context=context) as pool:
            jobs = []
            for seed in arguments.seeds:
                for task in arguments.tasks:
                    job = (task, seed, arguments.only or list(ARMS), arguments.minutes, arguments.out)
                    jobs.append(pool.submit(measure_seed, *job))
            for done in jobs:
                done.result()
    table(arguments.out, arguments.tasks)


if __name__ == "__main__":
    main()
