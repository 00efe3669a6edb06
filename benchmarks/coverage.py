"""How many distinct initial states do 200 demonstrations need? The figure and the table of the README.

    python -m benchmarks.coverage --out coverage
    python -m benchmarks.coverage --out coverage --table

For each task, each number K of distinct initial states and each seed: 200 demonstrations from K initial states, used
over and over; their diversity report; one training of the same steps; success from the same 100 new initial states.
Data and training have the seed; the evaluation set is the same for all. The last checkpoint is evaluated, not the best.
What is finished is kept: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from act_kit.eval.files import read_evaluation
from act_kit.pages import BLUE, GREEN, ORANGE
from act_kit.statistics import seeds_mean
from benchmarks.command import act

TASKS = {"push-v3": BLUE, "pick-place-v3": ORANGE, "shelf-place-v3": GREEN}
NUM = 200
DISTINCT = (1, 5, 20, 50, 200)
STEPS = 2000


@dataclass(frozen=True)
class Cell:
    """One dataset, one training, one evaluation."""

    folder: Path
    task: str
    distinct: int
    seed: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def is_done(self) -> bool:
        return (self.folder / "eval" / "summary.json").exists()

    def measure(self) -> None:
        """Collect, report, train and evaluate, as far as that is not done."""
        if self.is_done:
            return
        repeated = 0 if self.distinct == NUM else self.distinct  # 0: a new one each, also after a failed attempt
        collect = ("--task", self.task, "--n", NUM, "--num-init-states", repeated, "--seed", self.seed)
        act("collect", *collect, "--out", self.data, "--workers", 1, "--overwrite")
        act("report", self.data, code=None)
        options = (f"trainer.steps={STEPS}", f"trainer.validate_every={STEPS}", "selection.num_evaluations=0")
        run = self.folder / "run"
        train = ("--data", self.data, "--out", run, "--seed", self.seed, "--allow-low-diversity", "--overwrite")
        act("train", *train, "--workers", 1, *options)
        act("eval", run, "--out", self.folder / "eval", "--episodes", 100, "--workers", 1, "--overwrite")

    @property
    def verdict(self) -> str:
        """FAIL, WARN or OK."""
        report = self.folder / "data-report" / "diversity.json"
        return str(json.loads(report.read_text())["level"])

    @property
    def successes(self) -> np.ndarray:
        """Success from each initial state, bool (100,)."""
        return read_evaluation(self.folder / "eval").successes


def rows(cells: list[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """Return what is done, by task and number of initial states."""
    found: dict[tuple[str, int], list[Cell]] = {key: [] for key in product(TASKS, DISTINCT)}
    for cell in cells:
        if cell.is_done:
            found[cell.task, cell.distinct].append(cell)
    return {key: done for key, done in found.items() if len(done) > 1}  # one seed says nothing


def print_table(done: dict[tuple[str, int], list[Cell]]) -> None:
    """Print the report's verdicts and the successes of each seed, with the mean and its interval over seeds."""
    print("| distinct initial states of 200 | " + " | ".join(task.removesuffix("-v3") for task in TASKS) + " |")
    print("|---|" + "---|" * len(TASKS))
    for distinct in DISTINCT:
        texts = []
        for task in TASKS:
            of_cell = done.get((task, distinct), [])
            verdicts = "/".join(dict.fromkeys(cell.verdict for cell in of_cell))
            counts = " ".join(str(cell.successes.sum()) for cell in of_cell)
            texts.append(f"{verdicts}: {_mean(of_cell)} ({counts})" if of_cell else "")
        print(f"| {distinct} | " + " | ".join(texts) + " |")


def _mean(of_seeds: list[Cell]) -> str:
    """Return the mean over the seeds, with the interval that `act compare` gives it."""
    mean, low, high = _interval(of_seeds)
    return f"{mean:.0f} [{low:.0f}, {high:.0f}] %"


def _interval(of_seeds: list[Cell]) -> tuple[float, float, float]:
    """Return the mean over at least two seeds and the ends of its interval, in per cent."""
    mean = seeds_mean([np.stack([cell.successes for cell in of_seeds])])
    return 100 * mean.value, 100 * mean.low, 100 * mean.high


def draw(done: dict[tuple[str, int], list[Cell]], path: Path) -> None:
    """Draw success against the number of distinct initial states, with a point per seed and the report's verdicts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (task, color) in enumerate(TASKS.items()):
        of_task = [(distinct, done[task, distinct]) for distinct in DISTINCT if (task, distinct) in done]
        if not of_task:
            continue
        offset = 1.06 ** (number - 1)
        x = [distinct * offset for distinct, _ in of_task]
        mean, low, high = np.array([_interval(of_cell) for _, of_cell in of_task]).T
        axes.errorbar(x, mean, [mean - low, high - mean], color=color, label=task, linewidth=2, elinewidth=1, capsize=3)
        for where, (_, of_cell) in zip(x, of_task, strict=True):
            axes.scatter(
                [where] * len(of_cell), [100 * cell.successes.mean() for cell in of_cell], color=color, s=22, zorder=3
            )
            verdict = "/".join(dict.fromkeys(cell.verdict for cell in of_cell))
            axes.annotate(
                verdict,
                (where / offset, 0),
                xytext=(0, -46 - 11 * number),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
                color=color,
                annotation_clip=False,
            )
    axes.set_xscale("log")
    axes.set_xticks(DISTINCT, [str(distinct) for distinct in DISTINCT])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.set_ylabel("success from 100 new initial states (%)")
    axes.set_xlabel(
        f"distinct initial states among {NUM} demonstrations; below, what act report said before any training"
    )
    axes.grid(alpha=0.25)
    if done:
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="trainings at the same time")
    parser.add_argument("--table", action="store_true", help="print and draw what there is, and measure nothing")
    arguments = parser.parse_args()
    cells = [
        Cell(arguments.out / f"{task}-{distinct}-{seed}", task, distinct, seed)
        for seed, distinct, task in product(arguments.seeds, DISTINCT, TASKS)
    ]
    if not arguments.table:
        with ThreadPoolExecutor(arguments.side_by_side) as pool:
            list(pool.map(Cell.measure, cells))
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = rows(cells)
    print_table(done)
    draw(done, arguments.out / "coverage.png")


if __name__ == "__main__":
    main()
