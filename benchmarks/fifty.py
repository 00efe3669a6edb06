"""All fifty tasks from states, with the default options: one policy per task, one of MT10 and one of MT50.

    python -m benchmarks.fifty --out fifty                              hours on two cores
    python -m benchmarks.fifty --out fifty --seeds 3 --tasks push-v3    one training of one task
    python -m benchmarks.fifty --out fifty --table                      print what there is, and draw fifty.svg

For every task and training seed: 50 demonstrations collected with that seed, a policy trained on them with that seed,
and 100 test initial states drawn with that seed, for the policy and for the scripted expert. The policies of several
tasks train on the same demonstrations and are evaluated from the same initial states. ``--demonstrations`` trains on
other numbers of demonstrations of ``CURVE_TASKS`` instead.

What is finished is kept, and a training that was stopped is resumed: the same command goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import act_kit
from act_kit.api.evaluate import choose_init_states
from act_kit.eval.files import read_evaluation
from act_kit.eval.results import Evaluation
from act_kit.pages import BLUE, GRAY, new_figure
from act_kit.processors import num_cpus
from act_kit.rollouts.agents import ExpertAgent
from act_kit.sim.tasks import MT10, TASKS
from act_kit.statistics import Estimate, seeds_mean
from act_kit.text import name_values

SEEDS = (0, 1, 2)
NUM_DEMONSTRATIONS = 50
GROUPS = ("easy", "medium", "hard", "very hard")
BENCHMARKS = {"MT10": tuple(sorted(MT10)), "MT50": tuple(TASKS)}
CURVE_TASKS = ("reach-v3", "push-v3", "pick-place-v3", "peg-insert-side-v3", "shelf-place-v3")
CURVE = (5, 10, 20, 50, 100)
SHORT = 0.95
"""Mean success below which a task's failures are listed."""

HOLDS = 0.9
"""Share of an expert's successes that last to the end of the episode above which the expert holds."""

_ALONE = ("baseline_episodes=0", "demonstrated_episodes=0")


@dataclass(frozen=True)
class Job:
    """A policy, with everything that it needs, or the expert of a task.

    Attributes:
        name: Name of the policy: a task, MT10, MT50, or ``expert``.
        tasks: Tasks of the policy.
        seed: Seed of the demonstrations, the training and the test initial states.
        demonstrations: Number of demonstrations of each task.
    """

    name: str
    tasks: tuple[str, ...]
    seed: int
    demonstrations: int = NUM_DEMONSTRATIONS

    def folder(self, out: Path, kind: str) -> Path:
        """Return the folder of the run or of the evaluation."""
        name = f"expert-{self.tasks[0]}" if self.name == "expert" else self.name
        return out / kind / f"{name}-{self.demonstrations}-{self.seed}"


def collect(out: Path, task: str, seed: int, demonstrations: int) -> Path:
    """Collect a dataset, unless it is there."""
    folder = out / "data" / f"{task}-{demonstrations}-{seed}"
    act_kit.collect(task, demonstrations, seed=seed, out=folder, workers=1, resume=True)
    return folder


def run(job: Job, out: Path) -> str:
    """Train and evaluate a policy, or evaluate an expert, as far as it is not done; return the name of the job."""
    result = job.folder(out, "results")
    if not (result / "summary.json").exists():
        config = act_kit.compose(act_kit.EvalConfig, _ALONE, {"seed": job.seed})
        if job.name == "expert":
            (task,) = job.tasks
            act_kit.evaluate(ExpertAgent(), task, config=config, out=result, workers=1, overwrite=True)
        else:
            data = [collect(out, task, job.seed, job.demonstrations) for task in job.tasks]
            folder = job.folder(out, "runs")
            policy = act_kit.train(data, folder, seed=job.seed, workers=1, resume=True)
            sets = choose_init_states(policy, None, config)
            act_kit.evaluate_tasks(policy, sets, config, out=result, workers=1, overwrite=True)
    return f"{result.name}: {', '.join(describe(job, out))}"


def describe(job: Job, out: Path) -> list[str]:
    """Return the mean success of a job, at any step and at the last one, in percent."""
    evaluations = read(job, out)
    once = np.mean([each.success.value for each in evaluations.values()])
    end = np.mean([each.success_at_end.value for each in evaluations.values()])
    return [f"success {100 * once:.1f} %", f"at the end {100 * end:.1f} %"]


def read(job: Job, out: Path) -> dict[str, Evaluation]:
    """Read the evaluation of each task; none if they are not done."""
    result = job.folder(out, "results")
    if not (result / "summary.json").exists():
        return {}
    if len(job.tasks) == 1:
        return {job.tasks[0]: read_evaluation(result)}
    return {task: read_evaluation(result / task) for task in job.tasks}


def policy_jobs(tasks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return all policies and experts, seed by seed; those of several tasks only if all their tasks are asked for."""
    jobs: list[Job] = []
    for seed in seeds:
        for task in tasks:
            jobs += [Job(task, (task,), seed), Job("expert", (task,), seed)]
    for seed in seeds:
        for name, of_benchmark in BENCHMARKS.items():
            if set(of_benchmark) <= set(tasks):
                jobs.append(Job(name, of_benchmark, seed))
    return jobs


def curve_jobs(tasks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return the policies trained on other numbers of demonstrations."""
    jobs: list[Job] = []
    for seed in seeds:
        for task in tasks:
            jobs += [Job(task, (task,), seed, number) for number in CURVE]
    return jobs


# -- tables ------------------------------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[int, Evaluation]]
"""Evaluations by task and seed."""


def collect_results(jobs: Iterable[Job], out: Path) -> dict[str, dict[int, Evaluation]]:
    """Read the evaluations of several jobs by task and seed."""
    results: dict[str, dict[int, Evaluation]] = {}
    for job in jobs:
        for task, evaluation in read(job, out).items():
            results.setdefault(task, {})[job.seed] = evaluation
    return results


def mean_of(results: Results, tasks: Sequence[str], column: str = "success_once") -> Estimate | None:
    """Return the mean success of tasks over the seeds that all of them have; without an interval for one seed."""
    if not tasks or not set(tasks) <= set(results):
        return None
    seeds = sorted(set.intersection(*(set(results[task]) for task in tasks)))
    if not seeds:
        return None
    successes = []
    for task in tasks:
        rows = [results[task][seed].column(column) for seed in seeds]
        successes.append(np.array(rows, dtype=bool))
    if len(seeds) == 1:
        return Estimate(value=float(np.mean([each.mean() for each in successes])), low=np.nan, high=np.nan)
    return seeds_mean(successes)


def cell(estimate: Estimate | None) -> str:
    """Write an estimate in percent, with its interval."""
    if estimate is None:
        return ""
    interval = "" if np.isnan(estimate.low) else f" [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    return f"{100 * estimate.value:.1f}{interval}"


def seeds_cell(results: Results, task: str, column: str) -> str:
    """Write the number of successes of each seed."""
    numbers = [sum(evaluation.column(column)) for _, evaluation in sorted(results.get(task, {}).items())]
    return " ".join(map(str, numbers))


def print_policies(out: Path, seeds: Sequence[int]) -> None:
    """Print the successes of each seed in all tasks, the means of the groups, and what holds; draw the figure."""
    kinds: dict[str, Results] = {}
    for kind in ("single", "MT10", "MT50", "expert"):
        jobs = []
        for job in policy_jobs(list(TASKS), seeds):
            is_single = kind == "single" and job.name in TASKS
            if is_single or job.name == kind:
                jobs.append(job)
        kinds[kind] = collect_results(jobs, out)
    single, expert = kinds["single"], kinds["expert"]
    print(
        "| task | difficulty | one policy per task | at the end | MT10 | MT10 at the end | MT50 | MT50 at the end | "
        "expert | expert at the end | steps to success | final distance, m |"
    )
    print("| --- " * 12 + "|")
    for group in GROUPS:
        for task in (name for name in TASKS if TASKS[name].group == group):
            cells = [task.removesuffix("-v3"), group]
            for results in kinds.values():
                cells += [seeds_cell(results, task, "success_once"), seeds_cell(results, task, "success_at_end")]
            cells += [median_of(single, task, steps_to_success), median_of(single, task, final_distances)]
            print(f"| {' | '.join(cells)} |")
    print()
    means = ("mean", "tasks", "one policy per task, %", "at the end, %", "MT10, %", "MT50, %", "MT50 at the end, %")
    print(f"| {' | '.join(means)} | expert, % |")
    print("| --- " * 8 + "|")
    holding = [task for task in TASKS if task in expert and holds(expert[task].values())]
    chosen = {group: [task for task in TASKS if TASKS[task].group == group] for group in GROUPS}
    chosen |= {"MT10": list(BENCHMARKS["MT10"]), "all": list(TASKS), "expert holds": holding}
    for name, tasks in chosen.items():
        columns = [mean_of(single, tasks), mean_of(single, tasks, "success_at_end"), mean_of(kinds["MT10"], tasks)]
        columns += [mean_of(kinds["MT50"], tasks), mean_of(kinds["MT50"], tasks, "success_at_end")]
        columns.append(mean_of(expert, tasks))
        print(f"| {name} | {len(tasks)} | {' | '.join(map(cell, columns))} |")
    print()
    print_failures(kinds)
    draw(kinds, out / "fifty.svg")


def print_failures(kinds: Mapping[str, Results]) -> None:
    """Print, for the tasks below ``SHORT``, how many failures there are, where, and how many the expert shares."""
    print("| task | policy | failures of all seeds | the expert fails too | failure modes |")
    print("| --- " * 5 + "|")
    for kind, results in kinds.items():
        if kind == "expert":
            continue
        for task, by_seed in results.items():
            estimate = mean_of(results, [task])
            if estimate is None or estimate.value >= SHORT:
                continue
            num = shared = 0
            modes: Counter[str] = Counter()
            for seed, evaluation in by_seed.items():
                failed = ~evaluation.successes
                num += int(failed.sum())
                modes += evaluation.failures
                if seed in kinds["expert"].get(task, {}):
                    shared += int((failed & ~kinds["expert"][task][seed].successes).sum())
            cells = [task.removesuffix("-v3"), kind, str(num), str(shared), name_values(modes)]
            print(f"| {' | '.join(cells)} |")


def holds(evaluations: Iterable[Evaluation]) -> bool:
    """Return True if an expert's successes last to the end of the episode in most cases."""
    once = end = 0
    for evaluation in evaluations:
        once += sum(evaluation.column("success_once"))
        end += sum(evaluation.column("success_at_end"))
    return end >= HOLDS * once


def steps_to_success(evaluation: Evaluation) -> list[float]:
    """Return the number of steps to the first success of every successful episode."""
    return [step + 1 for step in evaluation.column("success_step") if step is not None]


def final_distances(evaluation: Evaluation) -> list[float]:
    """Return the final distance of every episode."""
    return list(evaluation.column("final_distance"))


def median_of(results: Results, task: str, values_of: Callable[[Evaluation], list[float]]) -> str:
    """Return the median over the episodes of all seeds."""
    values: list[float] = []
    for evaluation in results.get(task, {}).values():
        values += values_of(evaluation)
    return f"{np.median(values):.3g}" if values else ""


def draw(kinds: Mapping[str, Results], path: Path) -> None:
    """Draw the success of every task with its interval, sorted within each difficulty."""
    styles = {"single": (BLUE, "o", "one policy per task"), "MT50": (GRAY, "x", "one policy of MT50")}
    order: list[str] = []
    for group in GROUPS:
        known = [task for task in TASKS if TASKS[task].group == group and mean_of(kinds["single"], [task])]
        order += sorted(known, key=lambda task: -mean_of(kinds["single"], [task]).value)  # type: ignore[union-attr]
    if not order:
        return
    figure = new_figure()
    figure.set_size_inches(7, 0.19 * len(order) + 1.2)
    (axes,) = figure.axes
    for offset, (kind, (color, marker, label)) in enumerate(styles.items()):
        for row, task in enumerate(order):
            estimate = mean_of(kinds[kind], [task])
            if estimate is not None:
                at = row + 0.3 * offset
                axes.plot([100 * estimate.low, 100 * estimate.high], [at, at], color=color, linewidth=1)
                axes.plot(100 * estimate.value, at, marker, color=color, markersize=4, label=label)
                label = ""
    names = [f"{task.removesuffix('-v3')} ({TASKS[task].group})" for task in order]
    axes.set_yticks(range(len(order)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 101)
    axes.set_xlabel("success from 100 test initial states (%), 95 % interval over training seeds")
    axes.grid(axis="x", linewidth=0.3)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path)
    print(f"\n{path}")


def print_curve(out: Path, seeds: Sequence[int]) -> None:
    """Print the success by number of demonstrations."""
    print(f"| task | {' | '.join(f'{number} demonstrations, %' for number in CURVE)} |")
    print("| --- " * (1 + len(CURVE)) + "|")
    for task in CURVE_TASKS:
        cells: list[str] = []
        for number in CURVE:
            jobs = [Job(task, (task,), seed, number) for seed in seeds]
            cells.append(cell(mean_of(collect_results(jobs, out), [task])))
        print(f"| {task.removesuffix('-v3')} | {' | '.join(cells)} |")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--demonstrations", action="store_true", help="measure other numbers of demonstrations")
    parser.add_argument("--side-by-side", type=int, default=num_cpus(), help="policies at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes: two trainings side by side are faster so
    if not arguments.table:
        make, default = (curve_jobs, CURVE_TASKS) if arguments.demonstrations else (policy_jobs, tuple(TASKS))
        jobs = make(arguments.tasks or default, arguments.seeds)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.side_by_side, mp_context=context) as pool:
            for done in pool.map(run, jobs, [arguments.out] * len(jobs)):
                print(done, flush=True)
    if arguments.demonstrations:
        print_curve(arguments.out, arguments.seeds)
    else:
        print_policies(arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
