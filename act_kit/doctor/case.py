"""The cases that the doctor examines, with cached measurements: a dataset, or a run with datasets and evaluations."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from act_kit.collection.collect import collect
from act_kit.collection.render import render
from act_kit.config.collection import CollectConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.faults import Soundness
from act_kit.diversity.first_observations import FirstObservations, measure_dataset
from act_kit.diversity.result import DiversityReport
from act_kit.diversity.soundness import check_soundness
from act_kit.doctor.finding import Checks
from act_kit.doctor.generalization import SEED, Gap, comparable, evenly, measure_loss
from act_kit.errors import ActKitError, CheckpointError, DatasetError
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import check_disjoint, make_init_state_set
from act_kit.eval.results import Evaluation, rates_by_task
from act_kit.files import next_free_path, quoted, read_json
from act_kit.metrics import read_metrics
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.policies.storage import find_checkpoint
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import find_gl
from act_kit.statistics import Rate
from act_kit.training.run import load_run, recorded_evaluations, train_command

_NUM_FRESH = 24
"""Number of test initial states, over all tasks; at least ten per task."""

_NUM_DEMONSTRATED = 12
"""Number of demonstrated initial states, over all tasks; at least six per task."""

_SUCCEEDS = 0.8
"""Fraction of the expert's success rate: a policy fails in a task if its success rate is significantly lower."""


class DatasetCase:
    """A dataset and its reports, computed when first used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def store(self) -> EpisodeStore:
        """The dataset, opened."""
        return EpisodeStore.open(self.path)

    @cached_property
    def diversity(self) -> DiversityReport | FirstObservations:
        """The diversity report."""
        return measure_dataset(self.store, soundness=self.soundness)

    @cached_property
    def soundness(self) -> Soundness:
        """The result of replaying every demonstration and comparing it with the scripted expert."""
        return check_soundness(self.store, of_all=True)

    @property
    def is_refused(self) -> bool:
        """True if ``act train`` accepts the dataset only with ``--allow-low-diversity``."""
        try:
            return self.diversity.level == "FAIL"
        except DatasetError:
            return False

    def require_metaworld(self) -> None:
        """Raise :class:`DatasetError` unless states and actions are those of a Meta-World task."""
        if not self.store.is_metaworld:
            raise DatasetError(f"'{self.store.info.task}' is not a Meta-World task.")


@dataclass(frozen=True, kw_only=True)
class TaskRollouts:
    """The success rates of a policy and the expert in a task.

    Attributes:
        fresh: Success rate from test initial states.
        demonstrated: Success rate from demonstrated initial states; None if these were not recorded.
        expert: Success rate of the scripted expert from the same test initial states.
    """

    task: str
    fresh: Rate
    demonstrated: Rate | None
    expert: Rate

    @property
    def succeeds(self) -> bool:
        """True unless the policy succeeds significantly less often than the expert."""
        return self.fresh.interval[1] >= _SUCCEEDS * self.expert.value

    def __str__(self) -> str:
        demonstrated = f" and {self.demonstrated} from demonstrated ones" if self.demonstrated else ""
        return f"success {self.fresh} from test initial states{demonstrated}"


class RunCase:
    """A run and its measurements, which are made when first used. :meth:`close` stops the doctor's processes."""

    def __init__(self, folder: Path, num_workers: int, evaluation: Path | None = None) -> None:
        """Examine the run in ``folder`` with all its evaluations, or only the one in ``evaluation``."""
        self.folder = folder
        self.num_workers = num_workers
        self._evaluation = evaluation
        self._resources = ExitStack()

    def close(self) -> None:
        """Stop the processes and delete temporary data."""
        self._resources.close()

    # -- files of the run ------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> TrainConfig:
        """Training configuration."""
        return load_run(self.folder)[0]

    @cached_property
    def data(self) -> list[Path]:
        """Paths of the datasets that the configuration names."""
        return load_run(self.folder)[1]

    @cached_property
    def datasets(self) -> list[DatasetCase]:
        """Datasets that the configuration names."""
        return list(map(DatasetCase, self.data))

    @cached_property
    def stores(self) -> list[EpisodeStore]:
        """Datasets that the configuration names, opened."""
        return [case.store for case in self.datasets]

    @cached_property
    def policy(self) -> Policy:
        """The policy that ``act eval`` loads."""
        try:
            return Policy.load(self.folder)
        except CheckpointError as error:
            raise CheckpointError(f"There is no policy to test: {error}") from error

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints."""
        return sorted({path.resolve() for path in (self.folder / "checkpoints").glob("*") if path.is_dir()})

    @cached_property
    def read_evaluations(self) -> tuple[list[Evaluation], list[str]]:
        """Evaluations of the run, one per task, and a message for each damaged one.

        They are searched in the run's folder, next to it, and in the folders that the run has recorded.
        """
        evaluations: list[Evaluation] = []
        damaged: list[str] = []
        for path in self._summaries():
            try:
                if "tasks" not in read_json(path):  # each task of a multi-task evaluation has its own folder
                    evaluations.append(read_evaluation(path.parent))
            except (OSError, ValueError, TypeError) as error:
                damaged.append(f"{path}: {error}")
        return evaluations, damaged

    def _summaries(self) -> list[Path]:
        if self._evaluation:
            return sorted(self._evaluation.rglob("summary.json"))
        elsewhere = list(self.folder.resolve().parent.glob("eval*/**/summary.json"))
        for folder in recorded_evaluations(self.folder):
            elsewhere += [*folder.glob("summary.json"), *folder.glob("*/summary.json")]
        found = [*filter(self._is_evaluation_of_run, elsewhere), *self.folder.rglob("summary.json")]
        return sorted({path.resolve(): path for path in found}.values())

    def _is_evaluation_of_run(self, path: Path) -> bool:
        """Return True if the summary at ``path`` names a checkpoint or the weights of this run."""
        try:
            summary = read_json(path)
            checkpoint, weights = Path(summary["training"]["checkpoint"]), summary.get("weights")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return self.folder.resolve() in checkpoint.parents or (weights is not None and weights == self._weights)

    @cached_property
    def _weights(self) -> str | None:
        try:
            return self.policy.weights_hash
        except CheckpointError:
            return None

    @property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations that are not damaged."""
        return self.read_evaluations[0]

    @cached_property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the datasets."""
        return [store.content_fingerprint for store in self.stores]

    @property
    def trained_on(self) -> list[str]:
        """Fingerprints of the datasets that the policy was trained on."""
        return self.policy.metadata.fingerprints

    def require_training_data(self) -> None:
        """Raise :class:`DatasetError` unless the policy was trained on the run's datasets as they are now."""
        if self.trained_on != self.fingerprints:
            raise DatasetError("The run's datasets differ from those that the policy was trained on.")

    @cached_property
    def recorded(self) -> dict[str, dict[int, float]]:
        """Records of ``metrics.jsonl`` by name and step, declared or not."""
        recorded: dict[str, dict[int, float]] = {}
        for record in read_metrics(self.folder):
            step = int(record.pop("step"))
            for name, value in record.items():
                recorded.setdefault(name, {})[step] = float(value)
        return recorded

    # -- commands --------------------------------------------------------------------------------------------------

    def train_with(self, changes: Mapping[str, Any], *, data: Sequence[Path] | None = None) -> str:
        """Return the command that repeats the run in a new folder, with changed options (dotted keys) or other data."""
        try:
            config, paths = self.config, data or self.data
        except CheckpointError:
            return "act train --data DATASET"
        is_refused = data is None and any(dataset.is_refused for dataset in self.datasets)
        return train_command(config, paths, self.folder, changes) + (" --allow-low-diversity" if is_refused else "")

    def train_on_fixed(self, dataset: DatasetCase, fix: str) -> str:
        """Return ``fix``, followed by the training command if ``fix`` makes a new dataset next to the old one."""
        fixed = next_free_path(dataset.path)
        if f" {quoted(fixed)} " not in f"{fix} ":
            return fix
        data = list(self.data)
        data[self.datasets.index(dataset)] = fixed
        return f"{fix} && {self.train_with({}, data=data)}"

    def evaluate_with(self, out: Path, *options: str) -> str:
        """Return the command that evaluates the run."""
        return shlex.join(["act", "eval", str(self.folder), *options, "--out", str(out)])

    # -- losses ----------------------------------------------------------------------------------------------------

    def split(self, store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the training and the validation episodes of a dataset, as the run splits them."""
        trainer = self.config.trainer
        paths = list(map(Path.resolve, self.data))
        index = paths.index(store.path.resolve()) if store.path.resolve() in paths else None
        stores = [store] if index is None else self.stores
        return split_stores(stores, trainer.val_fraction, trainer.seed)[index or 0]

    @cached_property
    def fresh(self) -> dict[str, EpisodeStore]:
        """New demonstrations by the scripted expert, by task, with the dataset's noise and the policy's images."""
        scratch = Path(self._resources.enter_context(TemporaryDirectory()))
        views = self.policy.views
        fresh: dict[str, EpisodeStore] = {}
        for info in {store.info.task: store.info for store in self.stores}.values():
            flags = {"n": self._share(_NUM_FRESH, 4), "seed": SEED}
            for name in ("task", "noise", "steps_after_success"):
                flags[name] = getattr(info, name)
            config = compose(CollectConfig, flags=flags)
            with LocalExecutor(1) as executor:
                fresh[info.task] = collect(config, scratch / info.task, executor=executor)
            if views:
                with LocalExecutor(1, find_gl().environment) as executor:
                    render(fresh[info.task], views.cameras, views.settings, executor=executor)
        return fresh

    def gap_of(self, store: EpisodeStore) -> Gap:
        """Compare the loss on the dataset's held-out demonstrations with the loss on new ones of its task.

        Raises:
            IncomparableError: The new demonstrations, made by the scripted expert, differ in kind from the dataset's.
            DatasetError: The policy was not trained on the dataset as it is now, so its held-out episodes are unknown.
        """
        if store.content_fingerprint not in self.trained_on:
            raise DatasetError(
                f"{self.folder} was not trained on {store.path} as it is now, so its held-out episodes are unknown. "
                "Fix: give the dataset that config.yaml of the run names."
            )
        held_out = measure_loss(self.policy, store, evenly(comparable(store, self.split(store)[1])))
        fresh = self.fresh[store.info.task]
        return Gap.of(held_out, measure_loss(self.policy, fresh, np.arange(fresh.num_episodes)))

    @cached_property
    def gaps(self) -> tuple[dict[str, Gap], list[str]]:
        """Largest gap of each task, and the reasons why a dataset has none."""
        gaps: dict[str, Gap] = {}
        reasons: list[str] = []
        for store in self.stores:
            try:
                gap = self.gap_of(store)
            except ActKitError as error:
                reasons.append(str(error))
                continue
            largest = gaps.setdefault(store.info.task, gap)
            if gap.ratio > largest.ratio:
                gaps[store.info.task] = gap
        return gaps, list(dict.fromkeys(reasons))

    # -- rollouts --------------------------------------------------------------------------------------------------

    @cached_property
    def results(self) -> list[TaskRollouts]:
        """Success rates of each task."""
        fresh, demonstrated = rates_by_task(self.from_fresh), rates_by_task(self.from_demonstrated)
        return [
            TaskRollouts(task=task, fresh=fresh[task], demonstrated=demonstrated.get(task), expert=expert)
            for task, expert in self.expert_rates.items()
        ]

    @cached_property
    def roll(self) -> RolloutPool:
        """The pool of processes that runs rollouts."""
        return self._resources.enter_context(
            RolloutPool(self.num_workers, engine=self.config.sim.engine, num_envs=self.config.rollout.num_envs)
        )

    @cached_property
    def test_init_states(self) -> list[InitialState]:
        """Test initial states of each task, none of them demonstrated."""
        init_states: list[InitialState] = []
        for task in self.policy.tasks:
            init_state_set = make_init_state_set(task, "test", self._share(_NUM_FRESH, 10), SEED, [])
            check_disjoint(init_state_set, self.policy.metadata.init_states_of(task))
            init_states += init_state_set.init_states
        return init_states

    @cached_property
    def from_fresh(self) -> list[Episode]:
        """Results of the policy from test initial states."""
        return self.act_from(self.policy, self.test_init_states)

    @cached_property
    def from_demonstrated(self) -> list[Episode]:
        """Results of the policy from demonstrated initial states; empty unless these were recorded for all tasks."""
        init_states: list[InitialState] = []
        for task in self.policy.tasks:
            demonstrated = self.policy.metadata.init_states_of(task)
            if not demonstrated:
                return []
            num = self._share(_NUM_DEMONSTRATED, 6)
            init_states += make_init_state_set(task, "train", num, 0, demonstrated).init_states
        return self.act_from(self.policy, init_states)

    @cached_property
    def expert_rates(self) -> dict[str, Rate]:
        """Success rate of the scripted expert in each task, from the same test initial states."""
        return rates_by_task(self.roll(ExpertAgent(), self.test_init_states, stop_at_success=True))

    def act_from(self, policy: Policy, init_states: Sequence[InitialState]) -> list[Episode]:
        """Run rollouts of a policy, up to the first success."""
        return self.roll(PolicyAgent(policy), init_states, stop_at_success=True)

    def _share(self, num: int, least: int) -> int:
        """Return the number of episodes per task if ``num`` are divided among all tasks, at least ``least``."""
        return max(least, num // len(self.policy.tasks))


def run_checks() -> Checks[RunCase]:
    """Make the list of a module's checks of a run, whose usual fix is to train again."""
    return Checks(_locate, lambda case: case.train_with({}))


def _locate(case: RunCase, name: str) -> Path:
    """Return the path of a file of the run; the policy's files are those of the checkpoint that ``act eval`` loads."""
    is_of_policy = name in ("policy.json", "model.safetensors")
    return (find_checkpoint(case.folder) if is_of_policy else case.folder) / name
