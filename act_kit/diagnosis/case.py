"""What the doctor looks at: a run with its data and evaluations, and what it measures of them, each once."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from act_kit.collection.collect import collect
from act_kit.collection.render import render
from act_kit.config import CollectConfig, TrainConfig
from act_kit.datasets.first_observations import FirstObservations, measure_dataset
from act_kit.datasets.measured import Diversity
from act_kit.datasets.split import split_episodes
from act_kit.datasets.store import EpisodeStore
from act_kit.diagnosis.generalisation import SEED, Gap, evenly, measure_loss
from act_kit.errors import CheckpointError, DatasetError
from act_kit.eval.actors import ExpertActor, PolicyActor
from act_kit.eval.evalset import check_disjoint, make_evalset
from act_kit.eval.rollout import LocalRoll, Outcome
from act_kit.executors import LocalExecutor
from act_kit.overrides import compose
from act_kit.policy.policy import Policy
from act_kit.sim.render import find_gl
from act_kit.sim.starts import Start
from act_kit.telemetry import read_metrics
from act_kit.training.run import reopen_run

_NUM_FRESH = 24
"""Fresh starts that it measures on, over all tasks; at least four of each."""

_NUM_SHOWN = 12
"""Demonstrated starts, likewise."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """The evaluation of one task, as it lies on disk.

    Attributes:
        folder: Where.
        summary: ``summary.json``.
        rows: ``episodes.csv``.
        starts: Of ``starts.json``, float64 (N, D), unchecked.
        starts_file: All of ``starts.json``.
    """

    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]
    starts: np.ndarray
    starts_file: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> EvaluationFiles:
        """Read an evaluation, whatever it claims.

        Raises:
            DatasetError: A file is missing or cannot be read.
        """
        try:
            with (folder / "episodes.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            starts_file = json.loads((folder / "starts.json").read_text())
            return cls(
                folder=folder, summary=json.loads((folder / "summary.json").read_text()), rows=rows,
                starts=np.array(starts_file["starts"], dtype=np.float64), starts_file=starts_file,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"The evaluation {folder} is damaged: {error!r}. Evaluate again: act eval RUN"
            ) from error

    @property
    def task(self) -> str:
        """The task it says it is of."""
        return str(self.summary["task"])


class DatasetCase:
    """A dataset."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def store(self) -> EpisodeStore:
        """The dataset, opened."""
        return EpisodeStore.open(self.path)

    @cached_property
    def diversity(self) -> Diversity | FirstObservations:
        """What the report says of it."""
        return measure_dataset(self.store)

    def require_metaworld(self) -> None:
        """Raise :class:`DatasetError` unless states and actions are those of a task of Meta-World."""
        if not self.store.is_of_metaworld:
            raise DatasetError(f"'{self.store.info.task}' is no task of Meta-World.")


class RunCase:
    """A run. What it measures is measured when it is first asked for; the doctor's processes end with :meth:`close`."""

    def __init__(self, folder: Path, num_workers: int) -> None:
        self.folder = folder
        self.num_workers = num_workers
        self._resources = ExitStack()

    def close(self) -> None:
        """End the processes and delete what was only measured on."""
        self._resources.close()

    # -- what lies there -------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration it was trained with."""
        return reopen_run(self.folder)[0]

    @cached_property
    def datasets(self) -> list[DatasetCase]:
        """The datasets that its configuration names."""
        return [DatasetCase(path) for path in reopen_run(self.folder)[1]]

    @cached_property
    def stores(self) -> list[EpisodeStore]:
        """The same, opened."""
        return [case.store for case in self.datasets]

    @cached_property
    def policy(self) -> Policy:
        """The policy that an evaluation of this run would load."""
        try:
            return Policy.load(self.folder)
        except CheckpointError as error:
            raise CheckpointError(f"There is no policy to test: {error}") from error

    @cached_property
    def read_evaluations(self) -> tuple[list[EvaluationFiles], list[str]]:
        """Every evaluation in or beside the run's folder, of one task each, and what is wrong with those in it."""
        evaluations, damaged = [], []
        beside = [path for path in self.folder.resolve().parent.glob("eval*/**/summary.json") if self._is_of(path)]
        for path in sorted([*self.folder.rglob("summary.json"), *beside]):
            try:
                if "tasks" not in json.loads(path.read_text()):  # of several tasks: each has a folder of its own
                    evaluations.append(EvaluationFiles.read(path.parent))
            except (OSError, ValueError, DatasetError) as error:
                damaged.append(f"{path}: {error}")
        return evaluations, damaged

    def _is_of(self, path: Path) -> bool:
        """Tell whether the summary at ``path`` says that it is of a checkpoint of this run."""
        try:
            checkpoint = Path(json.loads(path.read_text(encoding="utf-8"))["training"]["checkpoint"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return self.folder.resolve() in checkpoint.parents

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of the datasets, as they are signed."""
        return [store.fingerprint or store.compute_fingerprint() for store in self.stores]

    @property
    def _trained_on(self) -> list[str]:
        return [shown.fingerprint for shown in self.policy.contract.demonstrations]

    def require_training_data(self) -> None:
        """Raise :class:`DatasetError` unless the datasets are those that the policy was trained on."""
        if self._trained_on != self.fingerprints:
            raise DatasetError("The run's data are not those that the policy was trained on.")

    @property
    def evaluations(self) -> list[EvaluationFiles]:
        """Those that read."""
        return self.read_evaluations[0]

    @cached_property
    def recorded(self) -> dict[str, dict[int, float]]:
        """The records of ``metrics.jsonl`` by name and step, declared or not, up to a damaged one."""
        recorded: dict[str, dict[int, float]] = {}
        for record in read_metrics(self.folder):
            try:
                for name, value in record.items():
                    recorded.setdefault(name, {})[int(record["step"])] = float(value)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        recorded.pop("step", None)
        return recorded

    @property
    def train_again(self) -> str:
        """The command that makes the run again."""
        try:
            data = " ".join(f"--data {dataset.path}" for dataset in self.datasets)
        except CheckpointError:
            data = "--data DATASET"
        return f"act train {data} --out {self.folder} --overwrite"

    # -- what is measured ------------------------------------------------------------------------------------------

    def split(self, store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the training and the validation episodes of a dataset, as the run splits them."""
        trainer = self.config.trainer
        return split_episodes(store.num_episodes, trainer.val_fraction, trainer.seed)

    @cached_property
    def fresh(self) -> list[EpisodeStore]:
        """Fresh demonstrations of each task, by the same demonstrator and with its noise, drawn if the policy looks."""
        scratch = Path(self._resources.enter_context(TemporaryDirectory()))
        views = self.policy.views
        stores = []
        for store in {store.info.task: store for store in self.stores}.values():
            info = store.info
            flags = {
                "task": info.task, "n": self._share(_NUM_FRESH), "seed": SEED, "noise": info.noise,
                "steps_after_success": info.steps_after_success,
            }  # fmt: skip
            config = compose("collect", CollectConfig, flags=flags)
            with LocalExecutor(1) as executor:
                stores.append(collect(config, scratch / info.task, executor=executor))
            if views:
                with LocalExecutor(1, find_gl().environment) as executor:
                    render(stores[-1], views.cameras, views.settings, executor=executor)
        return stores

    def gap_of(self, store: EpisodeStore) -> Gap:
        """Compare the loss on the dataset's held-out demonstrations with that on fresh ones of its task.

        Raises:
            DatasetError: The policy was not trained on it as it is: which episodes were held out is not known.
        """
        if (store.fingerprint or store.compute_fingerprint()) not in self._trained_on:
            raise DatasetError(
                f"{self.folder} was not trained on {store.path} as it is now, so nothing of it was held out. Give the "
                "dataset that config.yaml of the run names."
            )
        fresh = next(fresh for fresh in self.fresh if fresh.info.task == store.info.task)
        held_out = measure_loss(self.policy, store, evenly(self.split(store)[1]))
        return Gap.of(held_out, measure_loss(self.policy, fresh, np.arange(fresh.num_episodes)))

    @cached_property
    def gap(self) -> Gap:
        """The worst of the datasets'."""
        return max((self.gap_of(store) for store in self.stores), key=lambda gap: gap.ratio)

    @cached_property
    def roll(self) -> LocalRoll:
        """What rolls out."""
        return self._resources.enter_context(
            LocalRoll(self.num_workers, engine=self.config.sim.engine, num_rows=self.config.rollout.rows)
        )

    @cached_property
    def fresh_starts(self) -> list[Start]:
        """Fresh starts of each task, none of them demonstrated."""
        starts: list[Start] = []
        for task in self.policy.tasks:
            evalset = make_evalset(task, "fresh", self._share(_NUM_FRESH), SEED, [])
            check_disjoint(evalset, self.policy.contract.starts_of(task))
            starts += evalset.starts
        return starts

    @cached_property
    def shown_starts(self) -> list[Start]:
        """Some demonstrated starts of each task."""
        return [
            start
            for task in self.policy.tasks
            for start in make_evalset(
                task, "dataset", self._share(_NUM_SHOWN), 0, self.policy.contract.starts_of(task)
            ).starts
        ]

    @cached_property
    def from_fresh(self) -> list[Outcome]:
        """The policy from fresh starts."""
        return self.act_from(self.policy, self.fresh_starts)

    @cached_property
    def from_shown(self) -> list[Outcome]:
        """The policy from demonstrated starts."""
        return self.act_from(self.policy, self.shown_starts)

    @cached_property
    def expert(self) -> list[Outcome]:
        """The scripted expert from the same fresh starts."""
        return self.roll(ExpertActor(), self.fresh_starts, stop_at_success=True)

    def act_from(self, policy: Policy, starts: Sequence[Start], *, to_the_end: bool = False) -> list[Outcome]:
        """Roll a policy out."""
        return self.roll(PolicyActor(policy), starts, stop_at_success=not to_the_end)

    def _share(self, num: int) -> int:
        """Of ``num`` episodes, those of each task."""
        return max(4, num // len(self.policy.tasks))
