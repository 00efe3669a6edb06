"""How often the diversity report alarms on healthy datasets, and how often it sees what is wrong with others.

python benchmarks/false_alarms.py [TASK …]        14 minutes for all 50 tasks on two shared cores; prints Markdown

Datasets are draws of each task's own reset law, of seeds that nothing was tuned on: healthy ones as they are, the
others with one fault each. A dataset is alarmed about if any gate of its coverage is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy.special import ndtr
from scipy.stats import binomtest

from act_kit.datasets.diversity import Level, measure_starts
from act_kit.datasets.null import accepted, draw, scale
from act_kit.sim.starts import StartLaw, stack
from act_kit.sim.tasks import TASKS, Task
from act_kit.sim.workers import num_cpus

SIZES = (20, 50, 200)
NUM_FAULTY = 20
FIRST_SEED = 2 * 10**9
CORRELATION = 0.9


def within_law(
    task: Task, num: int, seed: int, change: Callable[[np.ndarray, np.random.Generator], None]
) -> np.ndarray:
    """Draw from the reset box, change that, and keep what the reset law could have given."""
    rng = np.random.default_rng(seed)
    starts = np.empty((0, len(task.low)))
    while len(starts) < num:
        batch = rng.uniform(task.low, task.high, (4 * num, len(task.low)))
        change(batch, rng)
        starts = np.concatenate([starts, batch[accepted(task, batch)]])
    return starts[:num]


def half_a_box(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw one dimension, another with every seed, from the lower half of its interval."""
    dim = task.informative[seed % len(task.informative)]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        batch[:, dim] -= (batch[:, dim] - task.low[dim]) / 2

    return within_law(task, num, seed, change)


def frozen(task: Task, num: int, seed: int) -> np.ndarray:
    """Keep one dimension, another with every seed, where the first start has it."""
    dim = task.informative[seed % len(task.informative)]
    value = draw(task, 1, seed)[0, dim]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        batch[:, dim] = value

    return within_law(task, num, seed, change)


def repeated(num_distinct: int) -> Callable[[Task, int, int], np.ndarray]:
    """Repeat so many starts."""
    return lambda task, num, seed: np.resize(draw(task, num_distinct, seed), (num, len(task.low)))


def correlated(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw two dimensions, others with every seed, from a Gaussian copula."""
    pair = np.random.default_rng(seed).permutation(task.informative)[:2]

    def change(batch: np.ndarray, rng: np.random.Generator) -> None:
        normal = rng.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]], len(batch))
        batch[:, pair] = np.asarray(task.low)[pair] + ndtr(normal) * task.width[pair]

    return within_law(task, num, seed, change)


def with_a_hole(task: Task, num: int, seed: int) -> np.ndarray:
    """Drop the tenth of starts that lie together about some point, as if the expert had failed there."""
    starts = draw(task, -(-num * 10 // 9), seed)
    scaled = scale(task, starts)
    apart = np.linalg.norm(scaled - scale(task, draw(task, 1, seed + 1)), axis=1)
    return starts[np.sort(np.argsort(apart)[len(starts) - num :])]


def sobol(task: Task, num: int, seed: int) -> np.ndarray:
    """Draw from a Sobol sequence."""
    return stack(StartLaw(task.name, "sobol").sample(num, seed=seed, stream="collect"))


HEALTHY: dict[str, tuple[Callable[[Task, int, int], np.ndarray], int]] = {
    "drawn from the reset law": (draw, 200),
    "a Sobol sequence": (sobol, 20),
    "a tenth missing in one place": (with_a_hole, 20),
}
FAULTS: dict[str, Callable[[Task, int, int], np.ndarray]] = {
    "one start repeated": repeated(1),
    "5 starts repeated": repeated(5),
    "20 starts repeated": repeated(20),
    "one dimension frozen": frozen,
    "half of one dimension": half_a_box,
    "two dimensions correlated, 0.9": correlated,
}


def levels(name: str, num: int) -> dict[str, list[Level]]:
    """Judge one task's datasets of one size."""
    task = TASKS[name]

    def judge(starts: np.ndarray) -> Level:
        return measure_starts(task, starts).level

    judged = {
        kind: [judge(make(task, num, FIRST_SEED + seed)) for seed in range(count)]
        for kind, (make, count) in HEALTHY.items()
    }
    for fault, make in FAULTS.items():
        # 20 of 20 starts repeated are no fault.
        if (fault == "20 starts repeated" and num <= 20) or (make is correlated and len(task.informative) < 2):
            continue
        judged[fault] = [judge(make(task, num, FIRST_SEED + seed)) for seed in range(NUM_FAULTY)]
    return judged


def cell(judged: list[Level], level: str) -> str:
    """Return a rate with its interval."""
    num = sum(found == level or (level == "any" and found != "OK") for found in judged)
    ends = binomtest(num, len(judged)).proportion_ci(method="wilson")
    return f"{num}/{len(judged)} [{100 * ends.low:.2f}, {100 * ends.high:.2f} %]"


def main() -> None:
    """Print the tables."""
    names = sys.argv[1:] or list(TASKS)
    began = time.monotonic()
    jobs = [(name, num) for num in reversed(SIZES) for name in names]
    with ProcessPoolExecutor(num_cpus()) as pool:
        results = dict(zip(jobs, pool.map(levels, *zip(*jobs, strict=True)), strict=True))
    print("| healthy datasets | demonstrations | FAIL | WARN | worst task: FAIL or WARN |\n" + "| --- " * 5 + "|")
    for kind in HEALTHY:
        for num in SIZES:
            judged = [level for name in names for level in results[name, num][kind]]
            alarms = {name: sum(level != "OK" for level in results[name, num][kind]) for name in names}
            worst = max(alarms, key=alarms.__getitem__)
            row = (
                kind,
                num,
                cell(judged, "FAIL"),
                cell(judged, "WARN"),
                f"{worst} {alarms[worst]}/{len(judged) // len(names)}",
            )
            print(f"| {' | '.join(map(str, row))} |")
    print("\n| fault | demonstrations | FAIL | FAIL or WARN | task seen least: FAIL or WARN |\n" + "| --- " * 5 + "|")
    for fault in FAULTS:
        for num in SIZES:
            found = {name: results[name, num][fault] for name in names if fault in results[name, num]}
            if found:
                judged = [level for levels in found.values() for level in levels]
                least = min(found, key=lambda name: sum(level != "OK" for level in found[name]))
                row = (
                    fault,
                    num,
                    cell(judged, "FAIL"),
                    cell(judged, "any"),
                    f"{least} {cell(found[least], 'any').split()[0]}",
                )
                print(f"| {' | '.join(map(str, row))} |")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
