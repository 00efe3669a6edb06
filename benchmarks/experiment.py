"""Experiments with several arms, tasks and training seeds: jobs, and the file of their results.

What is finished is a row of ``OUT/results.csv`` and is not measured again, and a training that was stopped is resumed:
the same command goes on, also on another machine that has the file. The files of the documentation are in
``docs/results``; a table of them needs no measurement:

    mkdir OUT && cp docs/results/fifty.csv OUT/results.csv && python -m benchmarks.fifty --out OUT --table

``OUT/settings.json`` holds the options that determine the rows: rows of others are refused.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import act_kit
from act_kit.api.evaluate import choose_init_states
from act_kit.eval.results import Evaluation
from act_kit.files import read_json, write_json
from act_kit.policies.policy import Policy
from act_kit.processors import num_cpus
from act_kit.rollouts.agents import Agent
from act_kit.sim.tasks import TASKS
from act_kit.statistics import Estimate, compare_seeds, percent, percent_ends, seeds_mean
from act_kit.text import name_values

AnyRow = TypeVar("AnyRow")

FAILED, ONCE, HELD = "012"
"""Outcomes of an episode: no success, success at some step, success at the last step."""


@dataclass(frozen=True)
class Job:
    """A training, or an expert, to evaluate.

    Attributes:
        arm: What is compared: a setting, a head, a policy of several tasks, …
        tasks: Tasks of the policy.
        seed: Training seed.
    """

    arm: str
    tasks: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Name for folders."""
        words = self.arm.replace(",", "").replace(" ", "-")
        return f"{words}-{self.tasks[0]}-{self.seed}" if len(self.tasks) == 1 else f"{words}-{self.seed}"


@dataclass(frozen=True)
class Row:
    """The evaluation of an arm on a task.

    Attributes:
        arm: What is compared.
        task: Meta-World task.
        seed: Training seed.
        episodes: Number of episodes.
        success_once: Number of episodes with success at any step.
        success_at_end: Number of episodes with success at the last step.
        outcomes: ``FAILED``, ``ONCE`` or ``HELD`` for each episode; empty if they were not recorded.
        steps_to_success: Median number of steps to the first success, in the successful episodes; NaN if there are
            none, or if they were not recorded.
        final_distance: Median final distance; NaN if it was not recorded.
        failure_modes: Failure modes and their numbers.
        note: What else a benchmark records.
    """

    arm: str
    task: str
    seed: int
    episodes: int
    success_once: int
    success_at_end: int
    outcomes: str
    steps_to_success: float
    final_distance: float
    failure_modes: str
    note: str = ""

    @classmethod
    def of(cls, arm: str, seed: int, evaluation: Evaluation, note: str = "") -> Row:
        """Return the row of an evaluation."""
        outcomes = ""
        for episode in evaluation.episodes:
            outcomes += HELD if episode.success_at_end else ONCE if episode.success_once else FAILED
        steps = [step + 1 for step in evaluation.column("success_step") if step is not None]
        return cls(
            arm=arm,
            task=evaluation.task,
            seed=seed,
            episodes=len(outcomes),
            success_once=len(outcomes) - outcomes.count(FAILED),
            success_at_end=outcomes.count(HELD),
            outcomes=outcomes,
            steps_to_success=float(np.median(steps)) if steps else np.nan,
            final_distance=float(f"{np.median(evaluation.column('final_distance')):.3g}"),
            failure_modes=name_values(evaluation.failures),
            note=note,
        )

    @property
    def key(self) -> tuple[str, str, int]:
        """What the row is of."""
        return self.arm, self.task, self.seed

    @property
    def successes(self) -> np.ndarray:
        """Success at any step, bool (episodes,)."""
        return np.array([outcome != FAILED for outcome in self.outcomes])

    @property
    def successes_at_end(self) -> np.ndarray:
        """Success at the last step, bool (episodes,)."""
        return np.array([outcome == HELD for outcome in self.outcomes])


def append(path: Path, rows: Sequence[Any]) -> None:
    """Append rows, of one dataclass, to a file in one write; several processes may append to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerows(map(asdict, rows))
        file.write(text.getvalue())


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """Read all rows, of a dataclass with text and numbers; none if there is no file."""
    if not path.exists():
        return []
    parse = {"str": str, "int": int, "float": float}
    rows: list[AnyRow] = []
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            values = {}
            for field in fields(kind):  # type: ignore[arg-type]
                values[field.name] = parse[str(field.type)](cells[field.name])
            rows.append(kind(**values))
    return rows


def read(path: Path) -> list[Row]:
    """Read the rows of an experiment. The last of several rows with the same key counts."""
    return list({row.key: row for row in read_rows(path, Row)}.values())


# -- measuring ---------------------------------------------------------------------------------------------------------


def parse_arguments(
    doc: str | None,
    *,
    tasks: Sequence[str],
    seeds: Sequence[int],
    arms: Sequence[str] = (),
    add: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> argparse.Namespace:
    """Parse the command line of an experiment."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(tasks), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    if arms:
        parser.add_argument("--only", nargs="+", choices=list(arms), default=list(arms), metavar="ARM")
    add(parser)
    parser.add_argument("--side-by-side", type=int, default=num_cpus(), help="policies at the same time")
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    return parser.parse_args()


def jobs_of_tasks(arguments: argparse.Namespace, arms: Iterable[str]) -> list[Job]:
    """Return the jobs of policies of one task: every arm for every seed and task that are asked for."""
    combinations = product(arguments.seeds, arguments.tasks, arms)
    return [Job(arm, (task,), seed) for seed, task, arm in combinations]


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what determines the rows in a folder beside their keys; refuse to add rows of other settings.

    Raises:
        SystemExit: The folder has other settings.
    """
    path = out / "settings.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    before = read_json(path)
    if before != settings:
        raise SystemExit(f"{out} has results of {before}, not of {settings}. Fix: choose another --out.")


def record(measure: Callable[[Job, Path], list[Row]], job: Job, out: Path) -> list[Row]:
    """Measure a job and append its rows at once, in its own process: they are kept if another job fails."""
    rows = measure(job, out)
    append(out / "results.csv", rows)
    return rows


def run(
    arguments: argparse.Namespace,
    jobs: Iterable[Job],
    measure: Callable[[Job, Path], list[Row]],
    *,
    settings: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Measure what is not yet done, in processes of their own, unless only the table is wanted; return all rows.

    ``settings`` are those options that determine the rows and are not a part of their keys.
    """
    out, path = arguments.out, arguments.out / "results.csv"
    if arguments.table:
        return read(path)
    keep_settings(out, settings or {})
    done = {row.key for row in read(path)}
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes: two trainings side by side are faster so
    with ProcessPoolExecutor(arguments.side_by_side, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = []
        for job in jobs:
            if not {(job.arm, task, job.seed) for task in job.tasks} <= done:
                futures.append(pool.submit(record, measure, job, out))
        try:
            for future in as_completed(futures):
                rows = future.result()
                success = np.mean([row.success_once / row.episodes for row in rows])
                of = rows[0].task if len(rows) == 1 else f"{len(rows)} rows"
                print(f"{rows[0].arm}, {of}, seed {rows[0].seed}: success {100 * success:.1f} %", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return read(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def collect(folder: Path, task: str, num: int, seed: int, **options: Any) -> Path:
    """Collect a dataset, unless it is there."""
    with locked(folder):
        act_kit.collect(task, num, seed=seed, out=folder, workers=1, resume=True, **options)
    return folder


def train(data: Path | Sequence[Path], run: Path, seed: int, overrides: Sequence[str] = (), **options: Any) -> Policy:
    """Train a policy, unless it is there; a training that was stopped goes on."""
    with locked(run):
        return act_kit.train(data, run, seed=seed, workers=1, resume=True, overrides=overrides, **options)


BARE = ("baseline_episodes=0", "demonstrated_episodes=0")
"""Options of an evaluation without baselines."""


def evaluate(agent: Policy | Agent, task: str, seed: int, episodes: int = 100, **options: Any) -> Evaluation:
    """Evaluate from test initial states, without baselines."""
    return act_kit.evaluate(agent, task, episodes=episodes, seed=seed, overrides=BARE, workers=1, **options)


def evaluate_policy(policy: Policy, seed: int) -> list[Evaluation]:
    """Evaluate a policy on each of its tasks from 100 test initial states, without baselines."""
    config = act_kit.compose(act_kit.EvalConfig, BARE, {"seed": seed})
    return act_kit.evaluate_tasks(policy, choose_init_states(policy, None, config), config, workers=1)


# -- tables ------------------------------------------------------------------------------------------------------------


def choose(rows: Iterable[Row], arm: str, task: str) -> list[Row]:
    """Return the rows of an arm and a task, sorted by seed."""
    return sorted((row for row in rows if (row.arm, row.task) == (arm, task)), key=lambda row: row.seed)


def common_seeds(*by_task: Sequence[Row]) -> list[int]:
    """Return the seeds that all tasks have."""
    return sorted(set.intersection(*({row.seed for row in rows} for rows in by_task))) if by_task else []


def mean_of(by_task: Sequence[Sequence[Row]], column: str = "success_once") -> Estimate | None:
    """Return the mean success of tasks over the seeds that all of them have; without an interval for one seed.

    Every seed has initial states of its own, so the numbers of successes suffice.
    """
    seeds = common_seeds(*by_task)
    if not seeds:
        return None
    successes = []
    for rows in by_task:
        numbers = [[getattr(row, column)] for row in rows if row.seed in seeds]
        successes.append(np.arange(rows[0].episodes) < np.array(numbers))
    if len(seeds) == 1:
        return Estimate(value=float(np.mean([each.mean() for each in successes])), low=np.nan, high=np.nan)
    return seeds_mean(successes, same_init_states=False)


def mean_cell(by_task: Sequence[Sequence[Row]], column: str = "success_once") -> str:
    """Write the mean success of tasks, see :func:`mean_of`, in percent, with its interval."""
    estimate = mean_of(by_task, column)
    if estimate is None:
        return ""
    interval = "" if np.isnan(estimate.low) else " [{}, {}]".format(*percent_ends(estimate.low, estimate.high))
    return f"{percent(estimate.value, 1)}{interval}"


def gain_cell(ours: Sequence[Sequence[Row]], theirs: Sequence[Sequence[Row]], *, at_end: bool = False) -> str:
    """Write the difference between two arms in points, paired by initial state, with its interval.

    It is empty unless both have two seeds.
    """
    seeds = common_seeds(*ours, *theirs)
    if len(seeds) < 2:
        return ""
    successes: list[list[np.ndarray]] = [[], []]
    for arm, of_arm in zip(successes, (theirs, ours), strict=True):
        for rows in of_arm:
            chosen = [row for row in rows if row.seed in seeds]
            arm.append(np.stack([row.successes_at_end if at_end else row.successes for row in chosen]))
    gain = compare_seeds(*successes, same_init_states=True, level=0.05)
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def by_seed(rows: Iterable[Row], column: str = "success_once") -> str:
    """Write the number of successes of each seed."""
    return " ".join(str(getattr(row, column)) for row in rows)


def print_row(cells: Iterable[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |")


def print_head(names: Sequence[str]) -> None:
    """Print the head of a table."""
    print_row(names)
    print("| --- " * len(names) + "|")
