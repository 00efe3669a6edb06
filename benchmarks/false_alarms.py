"""How often `act report` alarms on healthy datasets, and how often it sees what is wrong with others.

python -m benchmarks.false_alarms [TASK …]                              simulated initial states
python -m benchmarks.false_alarms --collected alarms.jsonl [TASK …]     collected datasets, the whole report

Without ``--collected``: datasets are draws of each task's own reset law, of seeds that nothing was tuned on, healthy
ones as they are, the others with one fault each. A dataset is alarmed about if any gate of its coverage is.

With it: datasets are collected by the scripted expert, 20 of each task, of 10, 20 and 50 demonstrations, some with
noise, and every finding of the report counts. Each result is a line of the file; the same command, stopped, goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr
from scipy.stats import binomtest

from act_kit.collection.collect import collect
from act_kit.config.collection import CollectConfig
from act_kit.diversity.first_observations import measure_dataset
from act_kit.diversity.integrity import Level
from act_kit.diversity.measure import measure_init_states
from act_kit.diversity.reference import accepted, draw
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.processors import num_cpus
from act_kit.sim.initial_states import InitialStateDistribution, scale, stack
from act_kit.sim.tasks import TASKS, Task

SIZES = (20, 50, 200)
NUM_FAULTY = 20
FIRST_SEED = 3 * 10**9
ROUNDS = range(4)
ROUND = ((10, 0.0), (10, 0.1), (20, 0.0), (20, 0.1), (50, 0.0))
"""Demonstrations and noise of the datasets that are collected of each task in each round."""
CORRELATION = 0.9


def within_distribution(
    task: Task, num: int, seed: int, change: Callable[[np.ndarray, np.random.Generator], None]
) -> np.ndarray:
    """Draw from the reset box, change that, and keep what the reset law could have given."""
    rng = np.random.default_rng(seed)
    init_states = np.empty((0, len(task.low)))
    while len(init_states) < num:
        batch = rng.uniform(task.low, task.high, (4 * num, len(task.low)))
        change(batch, rng)
        init_states = np.concatenate([init_states, batch[accepted(task, batch)]])
    return init_states[:num]


def half_a_box(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw one dimension, another with every seed, from the lower half of its interval."""
    dim = task.informative[seed % len(task.informative)]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        batch[:, dim] -= (batch[:, dim] - task.low[dim]) / 2

    return within_distribution(task, num, seed, change)


def frozen(task: Task, num: int, seed: int) -> np.ndarray:
    """Keep one dimension, another with every seed, where the first initial state has it."""
    dim = task.informative[seed % len(task.informative)]
    value = draw(task, 1, seed)[0, dim]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        batch[:, dim] = value

    return within_distribution(task, num, seed, change)


def repeated(num_distinct: int) -> Callable[[Task, int, int], np.ndarray]:
    """Repeat so many initial states."""
    return lambda task, num, seed: np.resize(draw(task, num_distinct, seed), (num, len(task.low)))


def correlated(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw two dimensions, others with every seed, from a Gaussian copula."""
    pair = np.random.default_rng(seed).permutation(task.informative)[:2]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        normal = rng.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]], len(batch))
        batch[:, pair] = np.asarray(task.low)[pair] + ndtr(normal) * task.width[pair]

    return within_distribution(task, num, seed, change)


def without_middle(share: float) -> Callable[[Task, int, int], np.ndarray]:
    """Leave out a box about the middle, of this share of all initial states."""

    def make(task: Task, num: int, seed: int) -> np.ndarray:
        init_states = draw(task, 20 * num, seed)
        outwards = np.abs(2 * scale(task, init_states) - 1).max(axis=1)
        outer = init_states[np.argsort(outwards)[round(share * len(init_states)) :]]
        return np.random.default_rng(seed).choice(outer, num, replace=False)

    return make


def without_rectangle(share: float, num_dims: int) -> Callable[[Task, int, int], np.ndarray]:
    """Leave out those nearest to a random one in some dimensions, of this share of all initial states."""

    def make(task: Task, num: int, seed: int) -> np.ndarray:
        rng, init_states = np.random.default_rng(seed), draw(task, 20 * num, seed)
        dims = rng.permutation(len(task.informative))[:num_dims]
        scaled = scale(task, init_states)[:, dims]
        apart = np.abs(scaled - scaled[0]).max(axis=1)
        return rng.choice(init_states[np.argsort(apart)[round(share * len(init_states)) :]], num, replace=False)

    return make


def with_a_hole(task: Task, num: int, seed: int) -> np.ndarray:
    """Drop the tenth of initial states that lie together about some point, as if the expert had failed there."""
    init_states = draw(task, -(-num * 10 // 9), seed)
    scaled = scale(task, init_states)
    apart = np.linalg.norm(scaled - scale(task, draw(task, 1, seed + 1)), axis=1)
    return init_states[np.sort(np.argsort(apart)[len(init_states) - num :])]


def sobol(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw from a Sobol sequence."""
    return stack(InitialStateDistribution(task.name, "sobol").sample(num, seed=seed, stream="collect"))


HEALTHY: dict[str, tuple[Callable[[Task, int, int], np.ndarray], int]] = {
    "drawn from the reset law": (draw, 200),
    "a Sobol sequence": (sobol, 20),
    "a tenth missing in one place": (with_a_hole, 20),
}
FAULTS: dict[str, Callable[[Task, int, int], np.ndarray]] = {
    "one initial state repeated": repeated(1),
    "5 initial states repeated": repeated(5),
    "20 initial states repeated": repeated(20),
    "one dimension frozen": frozen,
    "half of one dimension": half_a_box,
    "two dimensions correlated, 0.9": correlated,
    "10 % missing in the middle": without_middle(0.1),
    "20 % missing in the middle": without_middle(0.2),
    "30 % missing in the middle": without_middle(0.3),
    "only the outer half": without_middle(0.5),
    "30 % missing somewhere, in all dimensions": without_rectangle(0.3, 6),
    "30 % missing somewhere, in two dimensions": without_rectangle(0.3, 2),
    "30 % missing somewhere, in one dimension": without_rectangle(0.3, 1),
}


def levels(name: str, num: int) -> dict[str, list[Level]]:
    """Judge one task's datasets of one size."""
    task = TASKS[name]

    kinds = dict(HEALTHY)
    for fault, make in FAULTS.items():
        # 20 of 20 initial states repeated are not a fault.
        if (fault == "20 initial states repeated" and num <= 20) or (make is correlated and len(task.informative) < 2):
            continue
        kinds[fault] = (make, NUM_FAULTY)
    judged: dict[str, list[Level]] = {}
    for kind, (make, count) in kinds.items():
        init_states = (make(task, num, FIRST_SEED + seed) for seed in range(count))
        judged[kind] = [measure_init_states(task, each).level for each in init_states]
    return judged


def num_alarms(judged: list[Level]) -> int:
    """Return how many datasets are not OK."""
    return len(judged) - judged.count("OK")


def cell(judged: list[Level], level: Level | Literal["any"]) -> str:
    """Return a rate with its interval."""
    num = num_alarms(judged) if level == "any" else judged.count(level)
    ends = binomtest(num, len(judged)).proportion_ci(method="wilson")
    return f"{num}/{len(judged)} [{100 * ends.low:.2f}, {100 * ends.high:.2f} %]"


def collect_and_report(job: tuple[str, int]) -> list[dict[str, Any]]:
    """Collect the datasets of one round of a task, and report each as a user would."""
    name, round_ = job
    results = []
    flags = compose(CollectConfig, flags={"task": name})
    with TemporaryDirectory() as folder:
        for i, (num, noise) in enumerate(ROUND):
            seed = FIRST_SEED + len(ROUND) * round_ + i
            config = replace(flags, n=num, seed=seed, noise=noise)
            store = collect(config, Path(folder) / str(i), executor=LocalExecutor(1))
            report = measure_dataset(store)
            results.append(
                {
                    "task": name,
                    "round": round_,
                    "num": num,
                    "noise": noise,
                    "seed": seed,
                    "level": report.level,
                    "num_failed": len(store.attempts()) - num,
                    "findings": [[finding.level, finding.text] for finding in report.findings],
                }
            )
    return results


def run_collected(path: Path, names: list[str]) -> None:
    """Collect and report what the file lacks, and print the tables of all it holds."""
    began = time.monotonic()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {(result["task"], result["round"]) for result in map(json.loads, lines)}
    jobs = [(name, round_) for round_ in ROUNDS for name in names if (name, round_) not in done]
    with ProcessPoolExecutor(num_cpus()) as pool, path.open("a", encoding="utf-8") as file:
        for results in pool.map(collect_and_report, jobs):
            file.writelines(f"{json.dumps(result)}\n" for result in results)
            file.flush()
    print_collected([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    print(f"\n{time.monotonic() - began:.0f} s")


def print_collected(results: list[dict[str, Any]]) -> None:
    """Print the verdicts by size, and the findings by what they say."""
    tasks = {result["task"] for result in results}
    print(f"{len(results)} datasets of {len(tasks)} tasks\n")
    print("| demonstrations | expert | datasets | FAIL | WARN |\n" + "| --- " * 5 + "|")
    for num in sorted({num for num, _ in ROUND}):
        for expert, has_failed in (("never failed", False), ("failed now and then", True)):
            found = [r["level"] for r in results if r["num"] == num and bool(r["num_failed"]) == has_failed]
            if found:
                print(f"| {num} | {expert} | {len(found)} | {cell(found, 'FAIL')} | {cell(found, 'WARN')} |")
    texts = [(level, text, result["task"]) for result in results for level, text in result["findings"]]
    print("\n| finding | datasets | for example |\n" + "| --- " * 3 + "|")
    for (level, phrase), count in Counter((level, phrase_of(text)) for level, text, _ in texts).most_common():
        example = next(f"{task}: {text}" for _, text, task in texts if phrase_of(text) == phrase)
        print(f"| {level}: {phrase} | {count} | {example} |")


PHRASES = (
    "a hole: no demonstration has",
    "in the middle",
    "a hole: no demonstration begins near",
    "a hole",
    "covers only",
    "varies only",
    "is distributed differently",
    "vary together",
    "repeat the initial state",
    "are farther from",
)


def phrase_of(text: str) -> str:
    """Return the phrase that a finding is counted by, or all of it."""
    return next((phrase for phrase in PHRASES if phrase in text), text)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--collected", type=Path, metavar="FILE", help="the whole report of collected datasets")
    options = parser.parse_args()
    if options.collected:
        run_collected(options.collected, options.tasks)
    else:
        run_simulated(options.tasks)


def run_simulated(names: list[str]) -> None:
    """Print the tables of simulated initial states."""
    began = time.monotonic()
    jobs = [(name, num) for num in reversed(SIZES) for name in names]
    with ProcessPoolExecutor(num_cpus()) as pool:
        results = dict(zip(jobs, pool.map(levels, *zip(*jobs, strict=True)), strict=True))
    print("| healthy datasets | demonstrations | FAIL | WARN | worst task: FAIL or WARN |\n" + "| --- " * 5 + "|")
    for kind in HEALTHY:
        for num in SIZES:
            judged = [level for name in names for level in results[name, num][kind]]
            alarms = {name: num_alarms(results[name, num][kind]) for name in names}
            worst = max(alarms, key=alarms.__getitem__)
            of_worst = f"{worst} {alarms[worst]}/{len(judged) // len(names)}"
            print(f"| {kind} | {num} | {cell(judged, 'FAIL')} | {cell(judged, 'WARN')} | {of_worst} |")
    print("\n| fault | demonstrations | FAIL | FAIL or WARN | task seen least: FAIL or WARN |\n" + "| --- " * 5 + "|")
    for fault in FAULTS:
        for num in SIZES:
            found = {name: results[name, num][fault] for name in names if fault in results[name, num]}
            if found:
                judged = [level for levels in found.values() for level in levels]
                least = min(found, key=lambda name: num_alarms(found[name]))
                of_least = f"{least} {num_alarms(found[least])}/{len(found[least])}"
                print(f"| {fault} | {num} | {cell(judged, 'FAIL')} | {cell(judged, 'any')} | {of_least} |")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
