"""How many distinct initial states 50 demonstrations need: the table and the figure of the documentation.

    python -m benchmarks.coverage --out coverage
    python -m benchmarks.coverage --out coverage --tasks push-v3 --only "1 initial state" "50 initial states"
    python -m benchmarks.coverage --out coverage --table

For each task, number of distinct initial states and training seed: 50 demonstrations from these states, used
repeatedly, collected with the seed of the training; their diversity report; a training with the default options, whose
last checkpoint is evaluated from 100 new initial states, those of evaluation seed 100 + training seed. The note of a
row is the level of the report. The results are a file (``benchmarks/experiment.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import act_kit
from act_kit.pages import BLUE, GREEN, ORANGE, new_figure
from benchmarks import experiment
from benchmarks.experiment import Job, Row

TASKS = {"push-v3": BLUE, "pick-place-v3": ORANGE, "shelf-place-v3": GREEN}
NUM = 50
ARMS = {"1 initial state": 1, **{f"{num} initial states": num for num in (5, 20, NUM)}}


def measure(job: Job, out: Path) -> list[Row]:
    """Collect demonstrations, note their report, train a policy on them and evaluate it."""
    (task,) = job.tasks
    distinct = ARMS[job.arm]
    # 0 draws an initial state for each attempt, so that a failed one does not leave fewer than NUM.
    num_init_states = 0 if distinct == NUM else distinct
    data = experiment.collect(out / "data" / job.name, task, NUM, job.seed, num_init_states=num_init_states)
    overrides = ["selection.num_evaluations=0"]
    policy = experiment.train(data, out / "runs" / job.name, job.seed, overrides, allow_low_diversity=True)
    level = act_kit.measure_diversity(data).level
    return [Row.of(job.arm, job.seed, experiment.evaluate(policy, task, 100 + job.seed), note=level)]


def levels(rows: Sequence[Row]) -> str:
    """Write the levels of the reports, each once."""
    return "/".join(dict.fromkeys(row.note for row in rows))


def print_table(rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Print the levels of the reports, the successes of each seed, and their mean."""
    experiment.print_head([f"distinct initial states of {NUM}", *(task.removesuffix("-v3") for task in tasks)])
    for arm, distinct in ARMS.items():
        cells = [str(distinct)]
        for task in tasks:
            chosen = experiment.choose(rows, arm, task)
            text = f"{levels(chosen)}: {experiment.mean_cell([chosen])} % ({experiment.by_seed(chosen)})"
            cells.append(text if chosen else "")
        experiment.print_row(cells)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw success by number of distinct initial states, with a point per seed and the levels of the reports."""
    figure = new_figure()
    figure.set_size_inches(8, 4.4)
    (axes,) = figure.axes
    for number, (task, color) in enumerate(TASKS.items()):
        label = task
        for arm, distinct in ARMS.items():
            chosen = experiment.choose(rows, arm, task)
            estimate = experiment.mean_of([chosen])
            if estimate is None:
                continue
            at = distinct * 1.06 ** (number - 1)
            axes.plot([at, at], [100 * estimate.low, 100 * estimate.high], color=color, linewidth=1)
            axes.plot(at, 100 * estimate.value, "_", color=color, markersize=9, label=label)
            axes.plot([at] * len(chosen), [row.success_once for row in chosen], "o", color=color, markersize=4)
            below = (0, -46 - 11 * number)
            axes.annotate(
                levels(chosen),
                (distinct, 0),
                below,
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
                color=color,
                annotation_clip=False,
            )
            label = ""
    axes.set_xscale("log")
    axes.set_xticks(list(ARMS.values()), [str(distinct) for distinct in ARMS.values()])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.set_ylabel("success from 100 test initial states (%)")
    axes.set_xlabel(f"distinct initial states of {NUM} demonstrations; below, the level of act report before training")
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


def main() -> None:
    """Parse the command line and run."""
    arguments = experiment.parse_arguments(__doc__, tasks=list(TASKS), seeds=range(3), arms=list(ARMS))
    rows = experiment.run(arguments, experiment.jobs_of_tasks(arguments, arguments.only), measure)
    print_table(rows, arguments.tasks)
    if rows:
        draw(rows, arguments.out / "coverage.png")


if __name__ == "__main__":
    main()
