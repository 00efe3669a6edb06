"""Methods of a comparison: evaluations, one per training seed, and the configurations of their training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import ActKitError, ComparisonError, ConfigError, did_you_mean
from act_kit.eval.files import damaged, read_evaluations
from act_kit.eval.results import Evaluation, select
from act_kit.files import SEEDS, quoted, read_json
from act_kit.training.run import STEPS_FOLLOW_DATA, load_run, steps_taken

SEED_FOLDER = "seed-"
"""Prefix of the folders of a method's training seeds."""

NO_CONFOUND = ("trainer.seed", "trainer.validate_every", "rollout.num_envs", "wandb_project")
"""Options that may differ: those that replicates differ in, and those without effect on the result."""

_OF_SIMULATION = (
    *("eval.horizon", "eval.protocol", "eval.delay", "eval.versions", "eval.engine", "eval.success_rule"),
    "eval.init_states",
)
"""Conditions of an evaluation that do not depend on what is evaluated."""


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

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], name: str, folder: Path) -> SeedResult:
        """Collect the evaluations of a checkpoint, one per task.

        Raises:
            KeyError, TypeError, ValueError: Their provenance is damaged.
        """
        provenance = evaluations[0].provenance
        training = provenance["training"]
        conditions = select(provenance, ("horizon", "chunking", "versions", "device"))
        conditions["delay"] = evaluations[0].delay
        protocol = evaluations[0].protocol
        conditions["protocol"] = {"settle_steps": protocol.settle_steps, "ends_at_success": protocol.ends_at_success}
        per_task: dict[str, list[str]] = {"engine": [], "success_rule": [], "init_states": []}
        tasks: dict[str, Evaluation] = {}
        for evaluation in evaluations:
            tasks[evaluation.task] = evaluation
            per_task["engine"].append(evaluation.provenance["engine"])
            per_task["success_rule"].append(evaluation.provenance["success_rule"])
            per_task["init_states"].append(evaluation.init_state_set.kind)
        for key, values in per_task.items():
            conditions[key] = values if len(set(values)) > 1 else values[0]
        known = flatten(
            {
                "data": [f"{data['fingerprint'][:12]} ({data['command']})" for data in training["data"]],
                "versions": training["versions"],
                "views": training["views"] or {},
                "gl_renderer": training["gl_renderer"],
                "eval": conditions,
                "agent": provenance.get("agent", {}),
            }
        )
        for key in list(known):
            if key.endswith("versions.platform"):  # platforms differ only in rounding, which favors no method
                del known[key]
        config = None if training["config"] is None else flatten(training["config"])
        if config is not None and type(config["trainer.seed"]) is not int:
            raise ValueError(f"trainer.seed is {config['trainer.seed']}")
        if config is not None and config.pop(STEPS_FOLLOW_DATA, False):
            config["trainer.steps"] = "chosen for the data"
        return cls(name=name, folder=folder, tasks=tasks, config=config, conditions=known)

    @property
    def value(self) -> float:
        """Mean success over the tasks."""
        return float(np.mean([evaluation.success.value for evaluation in self.tasks.values()]))

    def option(self, key: str) -> str:
        """Return an option of the training or a condition as text.

        ``config`` is ``known``, ``unknown``, or ``none`` for an agent that is not a policy.
        """
        if key == "config":
            return "known" if self.config is not None else "none" if "agent.name" in self.conditions else "unknown"
        return _text({**(self.config or {}), **self.conditions}.get(key, "absent"))

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

    @classmethod
    def of(cls, label: str, evaluations: Sequence[Evaluation]) -> Method:
        """Collect the evaluations of a method on one task, one for each training seed.

        Raises:
            ComparisonError: They are not replicates.
        """
        seeds: list[SeedResult] = []
        for i, evaluation in enumerate(evaluations):
            seeds.append(SeedResult.of([evaluation], f"seed {i}", evaluation.folder))
        method = cls(label=label, path=Path(label), seeds=tuple(seeds), missing={})
        check_replicates(method)
        return method

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the evaluated tasks."""
        return tuple(self.seeds[0].tasks)

    @property
    def rates(self) -> list[float]:
        """Mean success of each seed over the tasks."""
        return [seed.value for seed in self.seeds]

    def options(self, key: str) -> list[str]:
        """Return the different values of an option or a condition, see :meth:`SeedResult.option`, sorted."""
        return sorted({seed.option(key) for seed in self.seeds})

    def successes(self, task: str) -> np.ndarray:
        """Return the successes on a task, bool (K, N), for K seeds and N episodes."""
        return np.stack([seed.tasks[task].successes for seed in self.seeds])

    @property
    def problems(self) -> list[str]:
        """Messages on missing seeds and crashed episodes."""
        total = len(self.seeds) + len(self.missing)
        found = [f"{len(self.missing)} of {total} seeds of {self.label} missing:"] if self.missing else []
        for name, reason in self.missing.items():
            found.append(f"{self.label}/{name}: {reason}")
        for seed in self.seeds:
            for task, evaluation in seed.tasks.items():
                if evaluation.crashes:
                    found.append(
                        f"{self.label}, {seed.name}, {task}: {len(evaluation.crashes)} of {len(evaluation.episodes)} "
                        f"episodes crashed and count as failed (number {', '.join(map(str, evaluation.crashes))})."
                    )
        return found


# -- reading -----------------------------------------------------------------------------------------------------------


def read_methods(paths: Sequence[Path]) -> list[Method]:
    """Read the methods of a comparison: each an evaluation, a run, or a folder of runs (``seed-0``, ``seed-1``, …).

    Raises:
        ComparisonError: A folder is missing, holds no complete evaluation, or their tasks differ.
    """
    methods: list[Method] = []
    folders: dict[Path, Path] = {}
    for path, label in zip(paths, _labels(paths), strict=True):
        method = replace(read_method(path), label=label)
        methods.append(method)
        for seed in method.seeds:
            other = folders.setdefault(seed.folder.resolve(), method.path)
            if other != method.path:
                raise ComparisonError(
                    f"{other} and {method.path} are both {seed.folder}: different evaluations were expected."
                )
    return methods


def read_method(path: Path) -> Method:
    """Read one method, labeled with the name of its folder; see :func:`read_methods`."""
    missing: dict[str, str] = {}
    seeds: list[SeedResult] = []
    if not path.is_dir():
        raise ComparisonError(f"There is no folder {path}. Fix: give evaluations or runs: act compare RUN RUN")
    if (path / "summary.json").exists() or (path / "config.yaml").exists():
        seeds.append(_read_seed(path))
    else:
        folders = set(filter(Path.is_dir, path.glob(f"{SEED_FOLDER}*")))
        for number in read_seeds(path) if (path / SEEDS).exists() else ():
            folders.add(path / f"{SEED_FOLDER}{number}")
        if not folders:
            raise ComparisonError(
                f"{path} is neither an evaluation, nor a run, nor a folder of runs {SEED_FOLDER}0, {SEED_FOLDER}1, …"
            )
        for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name)):
            try:
                seeds.append(_read_seed(folder))
            except ActKitError as error:
                missing[folder.name] = str(error)
        if not seeds:
            reasons = "\n".join(missing.values())
            raise ComparisonError(f"{path} holds no run that was trained and evaluated:\n{reasons}")
    method = Method(label=path.resolve().name, path=path, seeds=tuple(seeds), missing=missing)
    check_replicates(method)
    return method


def read_seeds(path: Path) -> list[int]:
    """Return the training seeds of the runs in ``path`` that ``act train --seeds`` planned.

    Raises:
        ComparisonError: The file does not hold a list of seeds.
    """
    seeds = read_json(path / SEEDS)
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ComparisonError(f"{path / SEEDS} is damaged: a list of training seeds was expected.")
    return seeds


def check_replicates(method: Method) -> None:
    """Refuse seeds that are not replicates: copies, equal training seeds, other tasks or other initial states."""

    def init_states(seed: SeedResult) -> set[str]:
        return {evaluation.init_state_set.hash for evaluation in seed.tasks.values()}

    for one, other in combinations(method.seeds, 2):
        both = f"{method.path}: {one.name} and {other.name}"
        if one.is_same(other):
            raise ComparisonError(
                f"{both} are the same evaluation: every number of every episode is equal. Two training seeds were "
                "expected. Fix: remove the copy."
            )
        number = one.config and one.config["trainer.seed"]
        if number == (other.config and other.config["trainer.seed"]):
            raise ComparisonError(f"{both} are not replicates: their trainer.seed is the same, {number}, or unknown.")
        if init_states(one) != init_states(other):
            raise ComparisonError(
                f"{both} were evaluated from different initial states. Fix: evaluate all from the same: act eval "
                f"{quoted(other.folder.parent)} --overwrite"
            )


def _read_seed(path: Path) -> SeedResult:
    """Read an evaluation, or the evaluation of a run."""
    run = path if (path / "config.yaml").exists() else path.parent
    if not path.is_dir():
        resume = f"act train --resume --out {quoted(path.parent)}"
        raise ComparisonError(f"{path} is missing: its training was planned. Fix: {resume}")
    if (run / "config.yaml").exists():
        planned, done = load_run(run)[0].trainer.steps, steps_taken(run)
        if done < planned:
            resume = f"act train --resume --out {quoted(run)}"
            raise ComparisonError(f"its training is unfinished, at step {done} of {planned}. Resume with: {resume}")
    if path == run:
        found = [summary.parent for summary in sorted(run.glob("eval-*/summary.json"))]
        if not found:
            raise ComparisonError(f"it was not evaluated. Fix: act eval {quoted(run)}")
        if len(found) > 1 and run / "eval-test" not in found:
            raise ComparisonError(f"it has several evaluations. Fix: choose from: {', '.join(map(str, found))}.")
        path = run / "eval-test" if run / "eval-test" in found else found[0]
    evaluations = read_evaluations(path)
    try:
        return SeedResult.of(evaluations, run.name, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


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
    folders = list(map(Path.resolve, paths))
    runs = [folder.parent if folder.name.startswith("eval-") else folder for folder in folders]
    folders = runs if len(set(runs)) == len(runs) else folders
    parts = [folder.parts for folder in folders]
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [part[:-1] for part in parts]
    is_vague = any(part[-1].startswith((SEED_FOLDER, "eval-")) for part in parts)
    for length in range(1 + is_vague, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ComparisonError(f"The same folder is given twice: {', '.join(map(str, paths))}.")


# -- differences -------------------------------------------------------------------------------------------------------


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

    def __str__(self) -> str:
        return f"{self.key} ({self.a} | {self.b})"


def covers(factor: str, keys: Iterable[str]) -> bool:
    """Return True if a factor is one of the keys or a group of it; the prefix ``eval.`` of a key may be omitted."""
    return any(f"{key}.".startswith((f"{factor}.", f"eval.{factor}.")) for key in keys)


def changes(a: Method, b: Method, factors: Sequence[str]) -> list[ConfigDifference]:
    """Return every option that is not the same for all seeds of both methods.

    ``config`` is one of them if the training configuration of a checkpoint is unknown because it was in no run folder.
    It stands for everything about the training of a run that is compared with an agent of another kind, and
    ``agent.name`` for everything about two agents of different names.
    """
    keys, configs = _keys([a, b]), {*a.options("config"), *b.options("config")}
    if "unknown" in configs:
        keys = ["config", *a.seeds[0].conditions]
    elif configs == {"known", "none"}:
        keys = ["config", *(key for key in keys if key.startswith(_OF_SIMULATION))]
    elif a.options("agent.name") != b.options("agent.name"):
        keys = ["agent.name", *(key for key in keys if not key.startswith("agent."))]
    found: list[ConfigDifference] = []
    for key in keys:
        values_a, values_b = a.options(key), b.options(key)
        if key in NO_CONFOUND or (values_a == values_b and len(values_a) == 1 and key != "config"):
            continue
        varies_within = max(len(values_a), len(values_b)) > 1
        declared = not varies_within and any(covers(factor, [key]) for factor in factors)
        found.append(ConfigDifference(key=key, a=" and ".join(values_a), b=" and ".join(values_b), declared=declared))
    return found


def check_factors(methods: Sequence[Method], factors: Sequence[str]) -> None:
    """Refuse factors that do not exist.

    Raises:
        ConfigError: A factor is not an option; the message names the closest one.
    """
    keys = ["config", *_keys(methods)]
    groups = {key.rpartition(".")[0] for key in keys if "." in key}
    for factor in factors:
        if not covers(factor, keys):
            raise ConfigError(f"--vary {factor}: there is no such option.{did_you_mean(factor, [*keys, *groups])}")


def _keys(methods: Sequence[Method]) -> list[str]:
    """Return the options and conditions of all seeds, without duplicates."""
    keys: dict[str, None] = {}
    for method in methods:
        for seed in method.seeds:
            keys |= dict.fromkeys((*(seed.config or {}), *seed.conditions))
    return list(keys)


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
