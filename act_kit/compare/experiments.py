"""Methods of a comparison: evaluations read by :mod:`act_kit.eval.files`, one per training seed, and the
configurations of their training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import ActKitError, ComparisonError, ConfigError, did_you_mean
from act_kit.eval.files import read_evaluations
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.results import Evaluation
from act_kit.files import SEEDS, quoted, read_json
from act_kit.statistics import Tasks
from act_kit.training.run import load_run, steps_taken

SEED_FOLDER = "seed-"
"""Prefix of the folders of a method's training seeds."""

NO_CONFOUND = ("trainer.seed", "rollout.num_envs", "wandb_project")
"""Options that may differ: those that replicates differ in, and those without effect on the result."""

_ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Evaluation of one checkpoint.

    Attributes:
        name: Name of the run folder.
        folder: Folder of the evaluation.
        tasks: Evaluations by task name.
        config: Training configuration by dotted key; None if the checkpoint was in no run folder.
        conditions: Data and versions of the training, and conditions of the evaluation (``eval.…``), by dotted key.
    """

    name: str
    folder: Path
    tasks: dict[str, Evaluation]
    config: dict[str, Any] | None
    conditions: dict[str, Any]

    @property
    def value(self) -> float:
        """Mean success over the tasks."""
        return float(np.mean([task.successes.mean() for task in self.tasks.values()]))

    def is_same(self, other: SeedResult) -> bool:
        """Return True if the other is a copy of this: every number of every episode is equal."""
        if set(self.tasks) != set(other.tasks):
            return False
        return all(evaluation.is_same(other.tasks[task]) for task, evaluation in self.tasks.items())


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a comparison.

    Attributes:
        label: Unique label.
        path: Path as it was given.
        seeds: Results of the training seeds that were trained and evaluated to the end.
        missing: Reasons why the others were not, by name.
    """

    label: str
    path: Path
    seeds: tuple[SeedResult, ...]
    missing: dict[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.seeds[0].tasks)

    def successes(self, *tasks: str) -> Tasks:
        """Return the successes of each task, bool (K, N), for K seeds and N episodes."""
        found: list[np.ndarray] = []
        for task in tasks:
            found.append(np.stack([seed.tasks[task].successes for seed in self.seeds]))
        return found

    def init_state_set(self, task: str) -> InitialStateSet:
        """Return the initial states of a task, which all seeds share."""
        return self.seeds[0].tasks[task].init_state_set

    @property
    def problems(self) -> list[str]:
        """Messages on missing seeds and crashed episodes."""
        total = len(self.seeds) + len(self.missing)
        found = [f"{len(self.missing)} of {total} seeds of {self.label} missing:"] if self.missing else []
        found += [f"{self.label}/{name}: {reason}" for name, reason in self.missing.items()]
        for seed in self.seeds:
            for name, task in seed.tasks.items():
                if task.crashes:
                    indices = ", ".join(map(str, task.crashes))
                    found.append(
                        f"{self.label}, {seed.name}, {name}: {len(task.crashes)} of {len(task.episodes)} "
                        f"episodes crashed and count as failed (number {indices})."
                    )
        return found


@dataclass(frozen=True, kw_only=True)
class ConfigDifference:
    """An option that differs between two methods.

    Attributes:
        key: Dotted key.
        a, b: Values; several if the option varies within a method.
        declared: True if the option was declared as a factor.
    """

    key: str
    a: str
    b: str
    declared: bool


# -- reading -----------------------------------------------------------------------------------------------------------


def read_methods(paths: Sequence[Path]) -> list[Method]:
    """Read the methods of a comparison: each an evaluation, a run, or a folder of runs ``seed-0``, ``seed-1``, …

    Raises:
        ComparisonError: A folder is missing, holds no complete evaluation, or their tasks differ.
    """
    methods = [replace(read_method(path), label=label) for path, label in zip(paths, _labels(paths), strict=True)]
    folders: dict[Path, Path] = {}
    for method in methods:
        for seed in method.seeds:
            folder = seed.folder.resolve()
            if folder in folders:
                raise ComparisonError(
                    f"{folders[folder]} and {method.path} are both {seed.folder}: different evaluations were expected."
                )
            folders[folder] = method.path
    for method in methods[1:]:
        if set(method.tasks) != set(methods[0].tasks):
            raise ComparisonError(
                f"{methods[0].label} was evaluated on {', '.join(methods[0].tasks)}; {method.label} on "
                f"{', '.join(method.tasks)}: the same tasks were expected. Fix: to compare one task of an evaluation "
                "of several, give its folder."
            )
    return methods


def read_method(path: Path) -> Method:
    """Read one method, labeled with the name of its folder; see :func:`read_methods`."""
    missing: dict[str, str] = {}
    if not path.is_dir():
        raise ComparisonError(f"There is no folder {path}. Fix: give evaluations or runs: act compare RUN RUN")
    if (path / "summary.json").exists() or (path / "config.yaml").exists():
        seeds = [_read_seed(path)]
    else:
        folders = {entry for entry in path.glob(f"{SEED_FOLDER}*") if entry.is_dir()} | _planned_folders(path)
        if not folders:
            raise ComparisonError(
                f"{path} is neither an evaluation, nor a run, nor a folder of runs {SEED_FOLDER}0, {SEED_FOLDER}1, …"
            )
        seeds = []
        for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name)):
            try:
                seeds.append(_read_seed(folder))
            except ActKitError as error:
                missing[folder.name] = str(error)
        if not seeds:
            raise ComparisonError(
                f"{path} holds no run that was trained and evaluated:\n" + "\n".join(missing.values())
            )
    method = Method(label=path.resolve().name, path=path, seeds=tuple(seeds), missing=missing)
    _check_replicates(method)
    return method


def _planned_folders(path: Path) -> set[Path]:
    """Return the folders of the seeds planned by ``act train --seeds``, existing or not."""
    try:
        seeds = read_json(path / SEEDS)
    except FileNotFoundError:
        return set()
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ComparisonError(f"{path / SEEDS} is damaged: a list of training seeds was expected.")
    return {path / f"{SEED_FOLDER}{seed}" for seed in seeds}


def _check_replicates(method: Method) -> None:
    """Refuse seeds that are not replicates: copies, equal training seeds, other tasks or other initial states."""
    for one, other in combinations(method.seeds, 2):
        if one.is_same(other):
            raise ComparisonError(
                f"{method.path}: {one.name} and {other.name} are the same evaluation: every number of every episode is "
                "equal. Two training seeds were expected. Fix: remove the copy."
            )
    by_seed: dict[Any, str] = {}
    for seed in method.seeds:
        number = seed.config and seed.config["trainer.seed"]
        if number in by_seed:
            raise ComparisonError(
                f"{method.path}: {by_seed[number]} and {seed.name} are not replicates: their trainer.seed is the same, "
                f"{number}, or unknown."
            )
        by_seed[number] = seed.name
        expected = {name: task.init_state_set.hash for name, task in method.seeds[0].tasks.items()}
        if {name: task.init_state_set.hash for name, task in seed.tasks.items()} != expected:
            raise ComparisonError(
                f"{method.path}: {method.seeds[0].name} and {seed.name} were evaluated from different initial states. "
                f"Fix: evaluate all from the same: act eval {quoted(seed.folder.parent)} --overwrite"
            )


def _read_seed(path: Path) -> SeedResult:
    """Read an evaluation, or the evaluation of a run."""
    run = path if (path / "config.yaml").exists() else path.parent
    if not path.is_dir():
        raise ComparisonError(
            f"{path} is missing: its training was planned. Fix: act train --resume --out {quoted(path.parent)}"
        )
    if (run / "config.yaml").exists():
        planned, done = load_run(run)[0].trainer.steps, steps_taken(run)
        if done < planned:
            raise ComparisonError(
                f"its training is unfinished, at step {done} of {planned}. Resume with: act train --resume --out "
                f"{quoted(run)}"
            )
    if path == run:
        found = [summary.parent for summary in sorted(run.glob("eval-*/summary.json"))]
        test_folder = run / "eval-test"
        if not found:
            raise ComparisonError(f"it was not evaluated. Fix: act eval {quoted(run)}")
        if len(found) > 1 and test_folder not in found:
            raise ComparisonError(f"it has several evaluations. Fix: choose from: {', '.join(map(str, found))}.")
        path = test_folder if test_folder in found else found[0]
    return _read_evaluation(path, run.name)


def _read_evaluation(folder: Path, name: str) -> SeedResult:
    """Read an evaluation of one or several tasks, whose summaries must agree with the episodes."""
    return make_seed_result(read_evaluations(folder), folder, name)


def method_of(label: str, evaluations: Sequence[Evaluation]) -> Method:
    """Return the method whose training seeds have these evaluations, each of one task."""
    seeds = [make_seed_result([each], each.folder, f"{SEED_FOLDER}{i}") for i, each in enumerate(evaluations)]
    method = Method(label=label, path=Path(label), seeds=tuple(seeds), missing={})
    _check_replicates(method)
    return method


def make_seed_result(evaluations: Sequence[Evaluation], folder: Path, name: str) -> SeedResult:
    """Return the evaluation of one checkpoint on one or several tasks as a replicate of a method."""
    try:
        first = evaluations[0].provenance
        training = first["training"]
        conditions: dict[str, Any] = {key: first[key] for key in ("horizon", "chunking", "versions", "device")}
        for key in ("engine", "success_rule"):
            conditions[key] = _single_or_list([evaluation.provenance[key] for evaluation in evaluations])
        conditions["init_states"] = _single_or_list([evaluation.init_state_set.kind for evaluation in evaluations])
        known = flatten(
            {
                "data": [f"{data['fingerprint'][:12]} ({data['command']})" for data in training["data"]],
                "versions": training["versions"],
                "views": training["views"] or {},
                "gl_renderer": training["gl_renderer"],
                "eval": conditions,
            }
        )
        config = None if training["config"] is None else flatten(training["config"])
        if config is not None and type(config["trainer.seed"]) is not int:
            raise ValueError(f"trainer.seed is {config['trainer.seed']}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ComparisonError(
            f"{folder} is no evaluation of this act_kit: {error!r}. Fix: evaluate again: act eval RUN --out "
            f"{quoted(folder)} --overwrite"
        ) from error
    # Platforms differ only in rounding, which favors no method.
    known = {key: value for key, value in known.items() if not key.endswith("versions.platform")}
    tasks = {evaluation.task: evaluation for evaluation in evaluations}
    return SeedResult(name=name, folder=folder, tasks=tasks, config=config, conditions=known)


def _single_or_list(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else list(values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as a flat mapping by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return a unique label per path: the run folder without the common suffix, with as many parents as necessary.

    ``seed-0`` and ``eval-test`` are not meaningful on their own, so they are preceded by their parent.
    """
    parts = [path.resolve().parts for path in paths]
    runs = [part[:-1] if part[-1].startswith("eval-") else part for part in parts]
    parts = runs if len(set(runs)) == len(runs) else parts
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [part[:-1] for part in parts]
    is_vague = any(part[-1].startswith((SEED_FOLDER, "eval-")) for part in parts)
    for length in range(1 + is_vague, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ComparisonError(f"The same folder is given twice: {', '.join(map(str, paths))}.")


# -- differences -------------------------------------------------------------------------------------------------------


def covers(factor: str, key: str) -> bool:
    """Return True if a factor is the key or a group of it; the prefix ``eval.`` of the key may be omitted."""
    return any(f"{name}.".startswith(f"{factor}.") for name in (key, key.removeprefix("eval.")))


def changes(a: Method, b: Method, factors: Sequence[str]) -> list[ConfigDifference]:
    """Return every option that is not the same for all seeds of both methods.

    ``config`` is one of them if the training configuration of a checkpoint is unknown because it was in no run folder.
    """
    known = all(seed.config is not None for seed in (*a.seeds, *b.seeds))
    keys = _keys([a, b]) if known else ["config", *(key for key in _keys([a, b]) if key in a.seeds[0].conditions)]
    found: list[ConfigDifference] = []
    for key in keys:
        values_a, values_b = _values(a, key), _values(b, key)
        if key in NO_CONFOUND or (len(values_a | values_b) == 1 and key != "config"):
            continue
        varies_within = max(len(values_a), len(values_b)) > 1
        declared = not varies_within and any(covers(factor, key) for factor in factors)
        text_a, text_b = " and ".join(sorted(values_a)), " and ".join(sorted(values_b))
        found.append(ConfigDifference(key=key, a=text_a, b=text_b, declared=declared))
    return found


def check_factors(methods: Sequence[Method], factors: Sequence[str]) -> None:
    """Refuse factors that do not exist.

    Raises:
        ConfigError: A factor is no option; the message names the closest one.
    """
    keys = ["config", *_keys(methods)]
    groups = {key.rpartition(".")[0] for key in keys if "." in key}
    for factor in factors:
        if not any(covers(factor, key) for key in keys):
            raise ConfigError(f"--vary {factor}: there is no such option.{did_you_mean(factor, [*keys, *groups])}")


def _keys(methods: Sequence[Method]) -> list[str]:
    seeds = [seed for method in methods for seed in method.seeds]
    return list(dict.fromkeys(chain.from_iterable((*(seed.config or {}), *seed.conditions) for seed in seeds)))


def _values(method: Method, key: str) -> set[str]:
    if key == "config":
        return {"known" if seed.config is not None else "unknown" for seed in method.seeds}
    return {_text({**(seed.config or {}), **seed.conditions}.get(key, _ABSENT)) for seed in method.seeds}


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) or "none" if isinstance(value, list) else str(value)
