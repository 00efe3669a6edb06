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
from act_kit.config import CollectConfig, TrainConfig
from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.faults import Soundness
from act_kit.diversity.first_observations import FirstObservations, measure_dataset
from act_kit.diversity.result import DiversityReport
from act_kit.diversity.soundness import check_soundness
from act_kit.doctor.generalization import SEED, Gap, comparable, evenly, measure_loss
from act_kit.errors import ActKitError, CheckpointError, DatasetError
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import check_disjoint, make_init_state_set
from act_kit.eval.results import Evaluation, success_rate
from act_kit.files import next_free_path, quoted, read_json
from act_kit.metrics import read_metrics
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
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
    def datasets(self) -> list[DatasetCase]:
        """Datasets that the configuration names."""
        return [DatasetCase(path) for path in load_run(self.folder)[1]]

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
        inside = {path.resolve(): path for path in self.folder.rglob("summary.json")}
        elsewhere = list(self.folder.resolve().parent.glob("eval*/**/summary.json"))
        for folder in recorded_evaluations(self.folder):
            elsewhere += [*folder.glob("summary.json"), *folder.glob("*/summary.json")]
        found = {path.resolve(): path for path in elsewhere if self._is_evaluation_of_run(path)} | inside
        return sorted(found.values())

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

    @cached_property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the datasets."""
        return [store.fingerprint or store.compute_fingerprint() for store in self.stores]

    @property
    def _trained_on(self) -> list[str]:
        return [demonstrations.fingerprint for demonstrations in self.policy.metadata.datasets]

    def require_training_data(self) -> None:
        """Raise :class:`DatasetError` unless the policy was trained on the run's datasets as they are now."""
        if self._trained_on != self.fingerprints:
            raise DatasetError("The run's datasets differ from those that the policy was trained on.")

    @property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations that are not damaged."""
        return self.read_evaluations[0]

    @cached_property
    def recorded(self) -> dict[str, dict[int, float]]:
        """Records of ``metrics.jsonl`` by name and step, declared or not, without damaged ones."""
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
        """Command that repeats the run, with all of its configuration, in a new folder."""
        return self.train_with({})

    def train_with(self, changes: Mapping[str, Any], *, data: Sequence[Path] | None = None) -> str:
        """Return the command that repeats the run with changed options (dotted keys) or other data."""
        try:
            config, paths = self.config, data or [dataset.path for dataset in self.datasets]
        except CheckpointError:
            return "act train --data DATASET"
        is_refused = data is None and any(dataset.is_refused for dataset in self.datasets)
        return train_command(config, paths, self.folder, changes) + (" --allow-low-diversity" if is_refused else "")

    def train_on_fixed(self, dataset: DatasetCase, fix: str) -> str:
        """Return ``fix``, followed by the training command if ``fix`` makes a new dataset next to the old one."""
        fixed = next_free_path(dataset.path)
        if f" {quoted(fixed)} " not in f"{fix} ":
            return fix
        data = [fixed if other is dataset else other.path for other in self.datasets]
        return f"{fix} && {self.train_with({}, data=data)}"

    def evaluate_with(self, out: Path, *options: str) -> str:
        """Return the command that evaluates the run."""
        return shlex.join(["act", "eval", str(self.folder), *options, "--out", str(out)])

    # -- measurements ----------------------------------------------------------------------------------------------

    def split(self, store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the training and the validation episodes of a dataset, as the run splits them."""
        trainer = self.config.trainer
        paths = [trained.path.resolve() for trained in self.stores]
        stores = self.stores if store.path.resolve() in paths else [store]
        splits = split_stores(stores, trainer.val_fraction, trainer.seed)
        return splits[paths.index(store.path.resolve()) if stores is self.stores else 0]

    @cached_property
    def fresh(self) -> list[EpisodeStore]:
        """New demonstrations of each task by the scripted expert, with the dataset's noise and the policy's images."""
        scratch = Path(self._resources.enter_context(TemporaryDirectory()))
        views = self.policy.views
        stores = []
        for store in {store.info.task: store for store in self.stores}.values():
            info = store.info
            flags = {
                "task": info.task,
                "n": self._share(_NUM_FRESH, 4),
                "seed": SEED,
                "noise": info.noise,
                "steps_after_success": info.steps_after_success,
            }
            config = compose(CollectConfig, flags=flags)
            with LocalExecutor(1) as executor:
                stores.append(collect(config, scratch / info.task, executor=executor))
            if views:
                with LocalExecutor(1, find_gl().environment) as executor:
                    render(stores[-1], views.cameras, views.settings, executor=executor)
        return stores

    def gap_of(self, store: EpisodeStore) -> Gap:
        """Compare the loss on the dataset's held-out demonstrations with the loss on new ones of its task.

        Raises:
            IncomparableError: The new demonstrations, made by the scripted expert, differ in kind from the dataset's.
            DatasetError: The policy was not trained on the dataset as it is now, so its held-out episodes are unknown.
        """
        if (store.fingerprint or store.compute_fingerprint()) not in self._trained_on:
            raise DatasetError(
                f"{self.folder} was not trained on {store.path} as it is now, so its held-out episodes are unknown. "
                "Fix: give the dataset that config.yaml of the run names."
            )
        held_out = evenly(comparable(store, self.split(store)[1]))
        fresh = next(fresh for fresh in self.fresh if fresh.info.task == store.info.task)
        return Gap.of(
            measure_loss(self.policy, store, held_out), measure_loss(self.policy, fresh, np.arange(fresh.num_episodes))
        )

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
            task = store.info.task
            gaps[task] = max(gap, gaps.get(task, gap), key=lambda gap: gap.ratio)
        return gaps, list(dict.fromkeys(reasons))

    @cached_property
    def results(self) -> list[TaskRollouts]:
        """Success rates of each task."""
        results = []
        for task in self.policy.tasks:
            demonstrated = _of_task(self.from_demonstrated, task)
            results.append(
                TaskRollouts(
                    task=task,
                    fresh=success_rate(_of_task(self.from_fresh, task)),
                    demonstrated=success_rate(demonstrated) if self.from_demonstrated else None,
                    expert=self.expert_rates[task],
                )
            )
        return results

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
    def train_init_states(self) -> list[InitialState]:
        """Some demonstrated initial states of each task; empty unless they were recorded for all tasks."""
        init_states: list[InitialState] = []
        for task in self.policy.tasks:
            demonstrated = self.policy.metadata.init_states_of(task)
            if not demonstrated:
                return []
            num = self._share(_NUM_DEMONSTRATED, 6)
            init_states += make_init_state_set(task, "train", num, 0, demonstrated).init_states
        return init_states

    @cached_property
    def from_fresh(self) -> list[Episode]:
        """Results of the policy from test initial states."""
        return self.act_from(self.policy, self.test_init_states)

    @cached_property
    def from_demonstrated(self) -> list[Episode]:
        """Results of the policy from demonstrated initial states; empty if these were not recorded."""
        return self.act_from(self.policy, self.train_init_states) if self.train_init_states else []

    @cached_property
    def expert(self) -> list[Episode]:
        """Results of the scripted expert from the same test initial states."""
        return self.roll(ExpertAgent(), self.test_init_states, stop_at_success=True)

    @cached_property
    def expert_rates(self) -> dict[str, Rate]:
        """Success rate of the scripted expert in each task."""
        return {task: success_rate(_of_task(self.expert, task)) for task in self.policy.tasks}

    def act_from(
        self, policy: Policy, init_states: Sequence[InitialState], *, to_the_end: bool = False
    ) -> list[Episode]:
        """Run rollouts of a policy."""
        return self.roll(PolicyAgent(policy), init_states, stop_at_success=not to_the_end)

    def _share(self, num: int, least: int) -> int:
        """Return the number of episodes per task if ``num`` are divided among all tasks, at least ``least``."""
        return max(least, num // len(self.policy.tasks))


def _of_task(outcomes: Sequence[Episode], task: str) -> list[Episode]:
    return [outcome for outcome in outcomes if outcome.init_state.task == task]
