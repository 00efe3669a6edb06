"""All fifty tasks from states, with the default options: one policy per task, one of MT10 and one of MT50.

    python -m benchmarks.fifty --out fifty                              hours on two cores
    python -m benchmarks.fifty --out fifty --seeds 3 --tasks push-v3    one training of one task
    python -m benchmarks.fifty --out fifty --table                      print what there is, and draw fifty.png

For every task and training seed: 50 demonstrations collected with that seed, a policy trained on them with that seed,
and 100 test initial states drawn with that seed, for the policy and for the scripted expert. The policies of several
tasks train on the same demonstrations and are evaluated from the same initial states. ``--demonstrations`` trains on
other numbers of demonstrations instead. The results are a file (``benchmarks/experiment.py``).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from act_kit.pages import BLUE, GRAY, new_figure
from act_kit.rollouts.agents import ExpertAgent
from act_kit.sim.tasks import MT10, TASKS
from act_kit.statistics import Estimate
from act_kit.text import name_values
from benchmarks import experiment
from benchmarks.experiment import FAILED, Job, Row

SINGLE, EXPERT = "single", "expert"
BENCHMARKS = {"MT10": tuple(sorted(MT10)), "MT50": tuple(TASKS)}
KINDS = (SINGLE, *BENCHMARKS, EXPERT)
NUM_DEMONSTRATIONS = 50
GROUPS = ("easy", "medium", "hard", "very hard")

CURVE = {f"{num} demonstrations": num for num in (5, 10, 20, 100)}
CURVE_TASKS = ("reach-v3", "push-v3", "pick-place-v3", "peg-insert-side-v3", "shelf-place-v3")

SHORT = 0.95
"""Mean success below which a task's failures are listed."""

HOLDS = 0.9
"""Share of an expert's successes that last to the end of the episode above which the expert holds."""


def measure(job: Job, out: Path) -> list[Row]:
    """Train and evaluate a policy, or evaluate an expert."""
    if job.arm == EXPERT:
        return [Row.of(EXPERT, job.seed, experiment.evaluate(ExpertAgent(), job.tasks[0], job.seed))]
    num = CURVE.get(job.arm, NUM_DEMONSTRATIONS)
    data = [experiment.collect(out / "data" / f"{task}-{num}-{job.seed}", task, num, job.seed) for task in job.tasks]
    policy = experiment.train(data, out / "runs" / job.name, job.seed)
    return [Row.of(job.arm, job.seed, each) for each in experiment.evaluate_policy(policy, job.seed)]


def policy_jobs(tasks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return all policies and experts, seed by seed; those of several tasks only if all their tasks are asked for."""
    jobs: list[Job] = []
    for seed in seeds:
        for task in tasks:
            jobs += [Job(SINGLE, (task,), seed), Job(EXPERT, (task,), seed)]
        for name, of_benchmark in BENCHMARKS.items():
            if set(of_benchmark) <= set(tasks):
                jobs.append(Job(name, of_benchmark, seed))
    return jobs


def curve_jobs(tasks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return the policies trained on other numbers of demonstrations, and those on the usual one."""
    jobs: list[Job] = []
    for seed in seeds:
        for task in tasks:
            jobs += [Job(arm, (task,), seed) for arm in (*CURVE, SINGLE)]
    return jobs


# -- tables ------------------------------------------------------------------------------------------------------------


def print_policies(rows: Sequence[Row], figure: Path) -> None:
    """Print the successes of each seed in all tasks, the means of the groups, and the failures; draw the figure."""
    names = ["task", "difficulty", "one policy per task", "at the end", "MT10", "MT10 at the end", "MT50"]
    experiment.print_head(
        [*names, "MT50 at the end", "expert", "expert at the end", "steps to success", "final distance, m"]
    )
    for group in GROUPS:
        for task in (name for name in TASKS if TASKS[name].group == group):
            cells = [task.removesuffix("-v3"), group]
            for kind in KINDS:
                chosen = experiment.choose(rows, kind, task)
                cells += [experiment.by_seed(chosen), experiment.by_seed(chosen, "success_at_end")]
            single = experiment.choose(rows, SINGLE, task)
            cells.append(" ".join(f"{row.steps_to_success:g}" for row in single))
            cells.append(" ".join(f"{row.final_distance:g}" for row in single))
            experiment.print_row(cells)
    print()
    print_means(rows)
    print()
    print_failures(rows)
    draw(rows, figure)


def print_means(rows: Sequence[Row]) -> None:
    """Print the means of the groups of tasks."""
    names = ["mean", "tasks", "one policy per task, %", "at the end, %", "MT10, %", "MT50, %", "MT50 at the end, %"]
    experiment.print_head([*names, "expert, %"])
    chosen = {group: [task for task in TASKS if TASKS[task].group == group] for group in GROUPS}
    chosen |= {"MT10": sorted(MT10), "all": list(TASKS)}
    chosen["expert holds"] = [task for task in TASKS if holds(experiment.choose(rows, EXPERT, task))]
    num_seeds = {task: len(experiment.choose(rows, SINGLE, task)) for task in TASKS}
    most = max(num_seeds.values())
    if min(num_seeds.values()) < most:
        chosen[f"{most} seeds of a policy each"] = [task for task in TASKS if num_seeds[task] == most]
    for name, tasks in chosen.items():
        of = {kind: [experiment.choose(rows, kind, task) for task in tasks] for kind in KINDS}
        cells = [name, str(len(tasks))]
        for kind in (SINGLE, "MT10", "MT50", EXPERT):
            cells.append(experiment.mean_cell(of[kind]))
            if kind in (SINGLE, "MT50"):
                cells.append(experiment.mean_cell(of[kind], "success_at_end"))
        experiment.print_row(cells)


def holds(expert: Sequence[Row]) -> bool:
    """Return True if an expert's successes last to the end of the episode in most cases."""
    once = sum(row.success_once for row in expert)
    return once > 0 and sum(row.success_at_end for row in expert) >= HOLDS * once


def print_failures(rows: Sequence[Row]) -> None:
    """Print the number of failures in the tasks below ``SHORT``, how many the expert shares, and their modes."""
    experiment.print_head(["task", "policy", "failures of all seeds", "the expert fails too", "failure modes"])
    for kind in (SINGLE, *BENCHMARKS):
        for task in TASKS:
            chosen = experiment.choose(rows, kind, task)
            num, total = sum(row.episodes - row.success_once for row in chosen), sum(row.episodes for row in chosen)
            if not chosen or num <= (1 - SHORT) * total:
                continue
            modes: Counter[str] = Counter()
            for row in chosen:
                for mode in filter(None, row.failure_modes.split(", ")):
                    name, _, number = mode.rpartition(" ")
                    modes[name] += int(number)
            cells = [task.removesuffix("-v3"), kind, str(num), shared_failures(rows, chosen)]
            experiment.print_row([*cells, name_values(dict(modes.most_common()))])


def shared_failures(rows: Sequence[Row], chosen: Sequence[Row]) -> str:
    """Write how many of a policy's recorded failures begin where the expert fails too."""
    num = shared = 0
    for row in chosen:
        for expert in experiment.choose(rows, EXPERT, row.task):
            if expert.seed == row.seed:  # outcomes that were not recorded are empty, and count on neither side
                pairs = list(zip(row.outcomes, expert.outcomes, strict=False))
                num += sum(ours == FAILED for ours, _ in pairs)
                shared += pairs.count((FAILED, FAILED))
    return f"{shared} of {num}" if num else ""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the success of every task with its interval, sorted within each difficulty."""
    styles = {SINGLE: (BLUE, "o", "one policy per task"), "MT50": (GRAY, "x", "one policy of MT50")}
    estimates: dict[tuple[str, str], Estimate] = {}
    for kind in styles:
        for task in TASKS:
            estimate = experiment.mean_of([experiment.choose(rows, kind, task)])
            if estimate is not None:
                estimates[kind, task] = estimate
    order: list[str] = []
    for group in GROUPS:
        known = [task for task in TASKS if TASKS[task].group == group and (SINGLE, task) in estimates]
        order += sorted(known, key=lambda task: -estimates[SINGLE, task].value)
    if not order:
        return
    figure = new_figure()
    figure.set_size_inches(7, 0.19 * len(order) + 1.2)
    (axes,) = figure.axes
    for offset, (kind, (color, marker, label)) in enumerate(styles.items()):
        for row, task in enumerate(order):
            if (kind, task) in estimates:
                estimate, at = estimates[kind, task], row + 0.3 * offset
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
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


def print_curve(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print the success by number of demonstrations."""
    arms = sorted({**CURVE, SINGLE: NUM_DEMONSTRATIONS}.items(), key=lambda arm: arm[1])
    experiment.print_head(["task", *(f"{num} demonstrations, %" for _, num in arms)])
    for task in tasks:
        cells = [experiment.mean_cell([experiment.choose(rows, arm, task)]) for arm, _ in arms]
        experiment.print_row([task.removesuffix("-v3"), *cells])


def main() -> None:
    """Parse the command line and run."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--demonstrations",
            action="store_true",
            help="measure other numbers of demonstrations, of five tasks or of --tasks",
        )

    arguments = experiment.parse_arguments(__doc__, tasks=list(TASKS), seeds=(0, 1, 2), add=add)
    if arguments.demonstrations:
        tasks = CURVE_TASKS if arguments.tasks == list(TASKS) else arguments.tasks
        print_curve(experiment.run(arguments, curve_jobs(tasks, arguments.seeds), measure), tasks)
    else:
        rows = experiment.run(arguments, policy_jobs(arguments.tasks, arguments.seeds), measure)
        print_policies(rows, arguments.out / "fifty.png")


if __name__ == "__main__":
    main()
