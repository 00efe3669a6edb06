"""What a comparison compares: evaluations as :mod:`act_kit.reports.evaluation` left them, one for each training seed, with
the configurations they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import (
    ActKitError,
    ComparisonError,
    ConfigError,
    DamagedFileError,
    DatasetError,
    TaskError,
    did_you_mean,
)
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.recount import EvaluationRows, check_overview, check_summary, read_rows
from act_kit.files import SEEDS, quoted, read_json
from act_kit.sim.tasks import get_task
from act_kit.statistics import Tasks
from act_kit.training.run import load_run, steps_taken

SEED_FOLDER = "seed-"
"""What the folders of the training seeds of an arm begin with."""

NO_CONFOUND = ("trainer.seed", "rollout.num_envs", "wandb_project")
"""Options that may differ: what is replicated over, and what decides nothing."""

_ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The episodes of one task.

    Attributes:
        evalset: The starts.
        successes: bool (N,), once, one per start.
        crashes: The episodes that crashed; they count as failed.
        digest: Equal for copies of an evaluation.
    """

    init_state_set: InitialStateSet
    successes: np.ndarray
    crashes: tuple[int, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One checkpoint's evaluation.

    Attributes:
        name: Of its run's folder.
        folder: Of the evaluation.
        tasks: By name.
        config: Of its training, by dotted key; None where the checkpoint lay in no run.
        conditions: What else it was trained on and with, and how it was evaluated (``eval.…``), by dotted key.
    """

    name: str
    folder: Path
    tasks: dict[str, TaskResult]
    config: dict[str, Any] | None
    conditions: dict[str, Any]

    @property
    def value(self) -> float:
        """Mean success of its tasks."""
        return float(np.mean([task.successes.mean() for task in self.tasks.values()]))

    def is_same(self, other: SeedResult) -> bool:
        """Tell whether the other is a copy of this: every number of every episode is equal."""
        return {task: measured.digest for task, measured in self.tasks.items()} == {
            task: measured.digest for task, measured in other.tasks.items()
        }


@dataclass(frozen=True, kw_only=True)
class Method:
    """One side of a comparison.

    Attributes:
        label: What tells it from the others.
        path: As it was given.
        seeds: One per training seed that was trained and evaluated to the end.
        missing: Why the others were not, by name.
    """

    label: str
    path: Path
    seeds: tuple[SeedResult, ...]
    missing: dict[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.seeds[0].tasks)

    def successes(self, *tasks: str) -> Tasks:
        """Return the successes of tasks, bool (K, N) each."""
        return [np.stack([seed.tasks[task].successes for seed in self.seeds]) for task in tasks]

    def init_state_set(self, task: str) -> InitialStateSet:
        """Return the starts of a task, which all seeds share."""
        return self.seeds[0].tasks[task].init_state_set

    @property
    def problems(self) -> list[str]:
        """Say what is missing from it, and what crashed."""
        total = len(self.seeds) + len(self.missing)
        found = [f"{len(self.missing)} of {total} seeds of {self.label} missing:"] if self.missing else []
        found += [f"{self.label}/{name}: {why}" for name, why in self.missing.items()]
        for seed in self.seeds:
            for task, measured in seed.tasks.items():
                if measured.crashes:
                    which = ", ".join(map(str, measured.crashes))
                    found.append(
                        f"{self.label}, {seed.name}, {task}: {len(measured.crashes)} of {len(measured.successes)} "
                        f"episodes crashed and count as failed (number {which})."
                    )
        return found


@dataclass(frozen=True, kw_only=True)
class ConfigDifference:
    """An option that is not the same in two arms.

    Attributes:
        key: Dotted.
        a, b: Its values; several, where it varies within an arm.
        declared: Whether it was said to be what is compared.
    """

    key: str
    a: str
    b: str
    declared: bool


# -- reading -----------------------------------------------------------------------------------------------------------


def read_methods(paths: Sequence[Path]) -> list[Method]:
    """Read the arms of a comparison: each an evaluation, a run, or a folder of runs ``seed-0``, ``seed-1``, …

    Raises:
        ComparisonError: There is none, it holds nothing that can be compared, or they are of different tasks.
    """
    methods = [replace(read_method(path), label=label) for path, label in zip(paths, _labels(paths), strict=True)]
    folders: dict[Path, Path] = {}
    for method in methods:
        for seed in method.seeds:
            if seed.folder.resolve() in folders:
                raise ComparisonError(f"{folders[seed.folder.resolve()]} and {method.path} are both {seed.folder}.")
            folders[seed.folder.resolve()] = method.path
    for method in methods[1:]:
        if set(method.tasks) != set(methods[0].tasks):
            raise ComparisonError(
                f"{methods[0].label} was evaluated on {', '.join(methods[0].tasks)}; {method.label} on {', '.join(method.tasks)}. "
                "Only evaluations of the same tasks can be compared; a folder within one of several is one of them."
            )
    return methods


def read_method(path: Path) -> Method:
    """Read one arm, which is called as its folder is; see :func:`read_methods`."""
    missing: dict[str, str] = {}
    if not path.is_dir():
        raise ComparisonError(f"There is no folder {path}. Give evaluations, or runs: act compare RUN RUN")
    if (path / "summary.json").exists() or (path / "config.yaml").exists():
        seeds = [_read(path)]
    else:
        folders = {entry for entry in path.glob(f"{SEED_FOLDER}*") if entry.is_dir()} | _wanted(path)
        if not folders:
            raise ComparisonError(
                f"{path} is neither an evaluation, nor a run, nor a folder of runs {SEED_FOLDER}0, {SEED_FOLDER}1, …"
            )
        seeds = []
        for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name)):
            try:
                seeds.append(_read(folder))
            except ActKitError as error:
                missing[folder.name] = str(error)
        if not seeds:
            raise ComparisonError(
                f"{path} holds no run that was trained and evaluated:\n" + "\n".join(missing.values())
            )
    method = Method(label=path.resolve().name, path=path, seeds=tuple(seeds), missing=missing)
    _check_replicates(method)
    return method


def _wanted(path: Path) -> set[Path]:
    """Return the folders of the seeds that ``act train --seeds`` was to train, whether they are there or not."""
    try:
        seeds = read_json(path / SEEDS)
    except FileNotFoundError:
        return set()
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ComparisonError(f"{path / SEEDS} is damaged: a list of training seeds was expected.")
    return {path / f"{SEED_FOLDER}{seed}" for seed in seeds}


def _check_replicates(method: Method) -> None:
    """Refuse seeds that are not replicates: copies, of the same training seed, of other tasks, from other starts."""
    for one, other in combinations(method.seeds, 2):
        if one.is_same(other):
            raise ComparisonError(
                f"{method.path}: {one.name} and {other.name} are the same evaluation: every number of every episode is "
                "equal. Two training seeds were expected: remove the copy."
            )
    by_seed: dict[Any, str] = {}
    for seed in method.seeds:
        number = seed.config and seed.config["trainer.seed"]
        if number in by_seed:
            raise ComparisonError(
                f"{method.path}: {by_seed[number]} and {seed.name} do not replicate each other: their trainer.seed is the "
                f"same, {number}, or unknown."
            )
        by_seed[number] = seed.name
        of_first = {task: measured.init_state_set.hash for task, measured in method.seeds[0].tasks.items()}
        if {task: measured.init_state_set.hash for task, measured in seed.tasks.items()} != of_first:
            raise ComparisonError(
                f"{method.path}: {method.seeds[0].name} and {seed.name} were evaluated from different starts. Evaluate all "
                f"from the same: act eval {quoted(seed.folder.parent)} --overwrite"
            )


def _read(path: Path) -> SeedResult:
    """Read an evaluation, or that of a run."""
    run = path if (path / "config.yaml").exists() else path.parent
    if not path.is_dir():
        raise ComparisonError(
            f"{path} was to be trained, and is not there. Fix: act train --resume --out {quoted(path.parent)}"
        )
    if (run / "config.yaml").exists():
        wanted, done = load_run(run)[0].trainer.steps, steps_taken(run)
        if done < wanted:
            raise ComparisonError(
                f"its training is unfinished, at step {done} of {wanted}. Go on: act train --resume --out {quoted(run)}"
            )
    if path == run:
        found = [summary.parent for summary in sorted(run.glob("eval-*/summary.json"))]
        fresh = run / "eval-test"
        if not found:
            raise ComparisonError(f"it was not evaluated. act eval {quoted(run)}")
        if len(found) > 1 and fresh not in found:
            raise ComparisonError(f"it has several evaluations: give one of {', '.join(map(str, found))}.")
        path = fresh if fresh in found else found[0]
    return _read_evaluation(path, run.name)


def _read_evaluation(folder: Path, name: str) -> SeedResult:
    """Read the evaluation of one task or several, and recompute every number of its summaries."""
    try:
        summary = read_json(folder / "summary.json")
        if "tasks" in summary:
            folders = {task: folder / get_task(task).name for task in summary["tasks"]}
        else:
            folders = {get_task(summary["task"]).name: folder}
        rows = {task: read_rows(of_task) for task, of_task in folders.items()}
        summaries = {task: read_json(of_task / "summary.json") for task, of_task in folders.items()}
        for task, of_task in folders.items():
            check_summary(of_task, summaries[task], rows[task])
        if "tasks" in summary:
            check_overview(folder, summary, summaries, rows)
        training = summary["training"]
        of_evaluation = {key: summary[key] for key in ("horizon", "chunking", "versions", "device")}
        of_tasks = {key: [values[key] for values in summaries.values()] for key in ("engine", "success_rule")}
        of_tasks["init_states"] = [of_task.init_state_set.kind for of_task in rows.values()]
        conditions = {
            "data": [f"{data['fingerprint'][:12]} ({data['command']})" for data in training["data"]],
            "versions": training["versions"],
            "views": training["views"] or {},
            "gl_renderer": training["gl_renderer"],
            "eval": {**of_evaluation, **{key: _one(values) for key, values in of_tasks.items()}},
        }
        config = None if training["config"] is None else flatten(training["config"])
        if config is not None and type(config["trainer.seed"]) is not int:
            raise ValueError(f"trainer.seed is {config['trainer.seed']}")
    except (DamagedFileError, DatasetError, TaskError) as error:
        raise ComparisonError(f"{error} Evaluate again: act eval RUN --out {quoted(folder)} --overwrite") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ComparisonError(
            f"{folder} is damaged, or no evaluation of this act_kit: {error!r}. Evaluate again: act eval RUN --out "
            f"{quoted(folder)} --overwrite"
        ) from error
    tasks = {task: _measured(of_task) for task, of_task in rows.items()}
    # Machines differ by rounding, which takes no side.
    known = {key: value for key, value in flatten(conditions).items() if not key.endswith("versions.platform")}
    return SeedResult(name=name, folder=folder, tasks=tasks, config=config, conditions=known)


def _measured(evaluation: EvaluationRows) -> TaskResult:
    return TaskResult(
        init_state_set=evaluation.init_state_set,
        successes=np.array([row.success_once for row in evaluation.rows]),
        crashes=tuple(i for i, row in enumerate(evaluation.rows) if row.crash),
        digest=evaluation.digest,
    )


def _one(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else list(values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _labels(paths: Sequence[Path]) -> list[str]:
    """Call each as its run is, without what all have at their ends, with as much before it as tells them apart.

    ``seed-0`` and ``eval-test`` tell nothing by themselves.
    """
    parts = [path.resolve().parts for path in paths]
    runs = [part[:-1] if part[-1].startswith("eval-") else part for part in parts]
    parts = runs if len(set(runs)) == len(runs) else parts
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [part[:-1] for part in parts]
    vague = any(part[-1].startswith((SEED_FOLDER, "eval-")) for part in parts)
    for length in range(1 + vague, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ComparisonError(f"The same folder is given twice: {', '.join(map(str, paths))}.")


# -- what differs ------------------------------------------------------------------------------------------------------


def covers(factor: str, key: str) -> bool:
    """Whether a factor is a key or a group that it is in; of the evaluation's keys, ``eval.`` may be left out."""
    return any(f"{name}.".startswith(f"{factor}.") for name in (key, key.removeprefix("eval.")))


def changes(a: Method, b: Method, factors: Sequence[str]) -> list[ConfigDifference]:
    """Return every option that is not the same for all seeds of both arms.

    Where a checkpoint lay in no run, whose configuration would say how it was trained, ``config`` is one.
    """
    known = all(seed.config is not None for seed in (*a.seeds, *b.seeds))
    keys = _keys([a, b]) if known else ["config", *(key for key in _keys([a, b]) if key in a.seeds[0].conditions)]
    found: list[ConfigDifference] = []
    for key in keys:
        of_a, of_b = _values(a, key), _values(b, key)
        if key in NO_CONFOUND or (len(of_a | of_b) == 1 and key != "config"):
            continue
        within = max(len(of_a), len(of_b)) > 1
        declared = not within and any(covers(factor, key) for factor in factors)
        texts = (" and ".join(sorted(values)) for values in (of_a, of_b))
        found.append(ConfigDifference(key=key, a=next(texts), b=next(texts), declared=declared))
    return found


def check_factors(methods: Sequence[Method], factors: Sequence[str]) -> None:
    """Refuse factors that do not exist.

    Raises:
        ConfigError: With the closest that does.
    """
    keys = ["config", *_keys(methods)]
    groups = {key.rpartition(".")[0] for key in keys if "." in key}
    for factor in factors:
        if not any(covers(factor, key) for key in keys):
            raise ConfigError(f"--vary {factor}: there is no such option.{did_you_mean(factor, [*keys, *groups])}")


def _keys(methods: Sequence[Method]) -> list[str]:
    seeds = [seed for method in methods for seed in method.seeds]
    return list(dict.fromkeys(key for seed in seeds for key in (*(seed.config or {}), *seed.conditions)))


def _values(method: Method, key: str) -> set[str]:
    if key == "config":
        return {"known" if seed.config is not None else "unknown" for seed in method.seeds}
    return {_text({**(seed.config or {}), **seed.conditions}.get(key, _ABSENT)) for seed in method.seeds}


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) or "none" if isinstance(value, list) else str(value)
