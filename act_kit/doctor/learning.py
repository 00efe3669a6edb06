"""Checks of what a policy has learned, and in which tasks it fails."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from act_kit import options
from act_kit.config import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor.case import DatasetCase, RunCase, TaskRollouts
from act_kit.doctor.finding import Checks, Result, ruled_out, suspected, untested
from act_kit.doctor.generalization import evenly, measure_loss
from act_kit.errors import DatasetError
from act_kit.files import next_free_path, quoted
from act_kit.overrides import preset_of

CHECKS = Checks[RunCase]()

_UNDERFITTING = 0.5
"""Fraction of the loss of a constant prediction above which a policy is underfitting."""

_SIGNIFICANCE = 0.01
"""p-value below which a measured difference is significant."""

_MAX_TASKS = 5
"""Maximum number of failing tasks whose causes are reported."""

_FACTORS = {
    "trainer.lr": (5, 5),
    "trainer.batch_size": (8, math.inf),
    "trainer.steps": (4, math.inf),
    "trainer.warmup_fraction": (math.inf, 5),
    "trainer.grad_clip": (100, math.inf),
    "trainer.weight_decay": (math.inf, 100),
    "policy.chunk_size": (8, 5),
    "chunking.n_action_steps": (math.inf, 3),
}
"""Factors below and above its preset beyond which an option may be the cause of a low success rate.

A model adds its own: :attr:`~act_kit.config.PolicyConfig.far_factors`.
"""

_DROPOUT = 0.2
"""Difference from the preset's dropout beyond which dropout may be the cause."""

_AVERAGED = 0.2
"""Fraction of the steps: a moving average of the weights over more steps still contains the initial weights."""


@CHECKS.add(
    "settings far from the preset", stage="learning", how_to_verify="train with the preset's values, and compare"
)
def settings(case: RunCase) -> Result:
    """Check that a failing policy was not trained with settings far from the preset."""
    far = far_from_preset(case.config)
    if not far:
        return ruled_out("No setting is far from the preset.")
    message = ", ".join(f"{setting.key}={setting.value:g} (preset: {setting.preset:g})" for setting in far)
    if not _failing(case):
        return ruled_out(f"Far from the preset: {message}; but the policy succeeds.")
    if [setting.key for setting in far] == ["trainer.steps"]:
        return ruled_out(f"Only the number of steps is far from the preset: {message}.")
    return suspected(
        f"the policy fails, and was trained with {message}.",
        case.folder / "config.yaml",
        _with_preset(case, far),
        severity="critical",
    )


@CHECKS.add("underfitting", stage="learning", how_to_verify="train longer, and compare the loss")
def under_trained(case: RunCase) -> Result:
    """Check that a failing policy fits its training demonstrations."""
    failing = _failing(case)
    if not failing:
        return ruled_out(f"The policy does not fail: {_success_rates(case.results)}.")
    wrong = _wrong_data(case)
    if wrong:
        return untested(_describe_wrong_data(wrong))
    fits = {result.task: _Fit.of(case, result.task) for result in failing}
    unfit = {task: fit for task, fit in fits.items() if fit.is_underfitting}
    if unfit:
        message = "; ".join(f"{_prefix(case, task)}{fit}" for task, fit in list(unfit.items())[:_MAX_TASKS])
        return suspected(
            f"the policy is underfitting: {message}{_contradiction_note(case)}.",
            case.folder / "metrics.jsonl",
            _train_more(case),
            severity="critical",
        )
    message = "; ".join(f"{_prefix(case, task)}{fit}" for task, fit in fits.items())
    return ruled_out(f"The policy fits its training demonstrations: {message}.")


@CHECKS.add(
    "memorizes its initial states",
    stage="learning",
    how_to_verify="run rollouts from demonstrated and from test initial states",
)
def generalizes(case: RunCase) -> Result:
    """Check that the loss on new demonstrations is close to the loss on held-out ones."""
    failing = {result.task for result in _failing(case)}
    if not failing:
        return ruled_out(f"The policy succeeds from test initial states: {_success_rates(case.results)}.")
    wrong = _wrong_data(case)
    if wrong:
        return untested(_describe_wrong_data(wrong))
    gaps, reasons = case.gaps
    alarming = {task: gap for task, gap in gaps.items() if gap.is_alarming and task in failing}
    if alarming:
        message = "; ".join(f"{_prefix(case, task)}{gap}" for task, gap in alarming.items())
        data = [str(dataset.path) for dataset in case.datasets if dataset.store.info.task in alarming]
        fix = " && ".join(f"act report {quoted(path)}" for path in data)
        return suspected(
            f"the policy memorizes its initial states: {message}.", "new demonstrations of the doctor", fix
        )
    if reasons:
        return untested(" ".join(reasons))
    message = "; ".join(f"{_prefix(case, task)}{gap}" for task, gap in gaps.items())
    return ruled_out(f"No alarming gap: {message}.")


@CHECKS.add("low success rate", stage="rollouts", how_to_verify="act eval RUN --record-video")
def interpretation(case: RunCase) -> Result:
    """Report in which tasks the policy fails, and the probable causes."""
    failing = sorted(_failing(case), key=lambda result: result.fresh.value)
    if not failing:
        return ruled_out(f"The policy does not fail: {_success_rates(case.results)}.")
    causes = [(result, *_cause(case, result)) for result in failing[:_MAX_TASKS]]
    parts = [f"{_prefix(case, result.task)}{result}, expert {result.expert}: {cause}" for result, cause, _ in causes]
    if failing[_MAX_TASKS:]:
        parts.append("the policy also fails in " + ", ".join(result.task for result in failing[_MAX_TASKS:]))
    others = [result for result in case.results if result.succeeds]
    if others:
        parts.append(f"the policy does not fail in {_task_rates(others)}")
    return suspected("; ".join(parts) + ".", "rollouts of the doctor", causes[0][2], severity="critical")


def _cause(case: RunCase, result: TaskRollouts) -> tuple[str, str]:
    """Return the probable cause of the failures in a task, and the fix."""
    wrong = _wrong_data(case, result.task)
    if wrong:
        cause = f"the demonstrations in {wrong[0].path} are wrong"
        return cause, case.train_on_fixed(wrong[0], wrong[0].soundness.fix_for(wrong[0].store))
    stores = _stores(case, result.task)
    fit = _Fit.of(case, result.task)
    gaps, _ = case.gaps
    gap = gaps.get(result.task)
    report = f"act report {quoted(stores[0].path)}"
    if fit.is_underfitting:
        return "the policy is underfitting", _train_more(case)
    if _depends_on_init_state(result):
        if gap is None:
            cause = "the demonstrations do not cover the initial states, or the policy drifts from the demonstrations"
            return cause, report
        if gap.is_alarming:
            return "the demonstrations do not cover the initial states", report
        cause = "the policy drifts from the demonstrations, or the evaluation differs from them"
        return cause, _collect_more(case, stores[0], noise=max(0.1, stores[0].info.noise))
    if gap is not None and gap.is_alarming:
        return "the training was too short, the model is too small, or the demonstrations are bad", _train_more(case)
    held_out = max(measure_loss(case.policy, store, evenly(case.split(store)[1], 10)).value for store in stores)
    if held_out > 2 * fit.loss:
        cause = (
            f"the policy overfits its training episodes (L1 {fit.loss:.3f}, on others {held_out:.3f}): there are too "
            "few of them"
        )
        return cause, _collect_more(case, stores[0], noise=stores[0].info.noise)
    cause = (
        f"the predictions are close to the demonstrations (L1 {fit.loss:.3f} on the training episodes), but not close "
        "enough, or the policy drifts, or its chunks are executed wrongly (act eval RUN --sweep-chunking)"
    )
    return cause, _train_more(case)


def _depends_on_init_state(result: TaskRollouts) -> bool:
    """Return True if the policy succeeds more often from demonstrated initial states than from test ones."""
    demonstrated, fresh = result.demonstrated, result.fresh
    if demonstrated is None:
        return False
    table = [[rate.successes, rate.num - rate.successes] for rate in (demonstrated, fresh)]
    return bool(fisher_exact(table, alternative="greater").pvalue < _SIGNIFICANCE)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The fit of a policy to its training demonstrations of a task.

    Attributes:
        loss: L1 on some of its training episodes, the mean over the datasets.
        constant_loss: L1 of predicting zeros or the mean action, whichever is less.
    """

    loss: float
    constant_loss: float

    @classmethod
    def of(cls, case: RunCase, task: str) -> _Fit:
        stores = _stores(case, task)
        losses = [measure_loss(case.policy, store, evenly(case.split(store)[0], 10)).value for store in stores]
        all_actions = [store.steps("action") for store in stores]
        zeros = np.mean([np.abs(actions).mean() for actions in all_actions])
        means = np.mean([np.abs(actions - actions.mean(axis=0)).mean() for actions in all_actions])
        return cls(loss=float(np.mean(losses)), constant_loss=float(min(zeros, means)))

    @property
    def is_underfitting(self) -> bool:
        return self.loss > _UNDERFITTING * self.constant_loss

    def __str__(self) -> str:
        return (
            f"L1 is {self.loss:.3f} on the training demonstrations; that of a constant action is "
            f"{self.constant_loss:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An option that is far from its preset.

    Attributes:
        key: Dotted key.
        value: Value in the run's configuration.
        preset: Value in the preset.
        farness: Distance from the preset on a log scale; 1 at the limit.
    """

    key: str
    value: float
    preset: float
    farness: float


def far_from_preset(config: TrainConfig) -> list[Setting]:
    """Return the options so far from their preset that they may cause a low success rate, the farthest first."""
    _, preset = preset_of(config)
    far: list[Setting] = []

    def add(key: str, farness: float) -> None:
        if farness > 1:
            value, usual = float(options.get(config, key)), float(options.get(preset, key))
            far.append(Setting(key=key, value=value, preset=usual, farness=farness))

    factors = dict(_FACTORS)
    for name, limits in config.policy.far_factors.items():
        factors[f"policy.{name}"] = limits
    for key, (below, above) in factors.items():
        value, usual = float(options.get(config, key)), float(options.get(preset, key))
        if value <= 0:
            add(key, 2.0 if math.isfinite(below) and usual > 0 else 0.0)
            continue
        off = math.log(value / usual)
        add(key, off / math.log(above) if off > 0 else -off / math.log(below))
    if hasattr(config.policy, "dropout"):
        extra = options.get(config, "policy.dropout") - options.get(preset, "policy.dropout")
        add("policy.dropout", extra / _DROPOUT)
    add(
        "trainer.ema_decay",
        1 / (1 - config.trainer.ema_decay) / (_AVERAGED * config.trainer.steps) if config.trainer.ema_decay else 0.0,
    )
    return sorted(far, key=lambda setting: -setting.farness)


def _with_preset(case: RunCase, far: list[Setting]) -> str:
    """Return the command that trains again with the preset's values of some settings."""
    _, preset = preset_of(case.config)
    return case.train_with({setting.key: options.get(preset, setting.key) for setting in far})


def _train_more(case: RunCase) -> str:
    """Return the command that trains with the preset's values if any setting is far from them, else twice as long."""
    far = far_from_preset(case.config)
    return _with_preset(case, far) if far else case.train_with({"trainer.steps": 2 * case.config.trainer.steps})


def _collect_more(case: RunCase, store: EpisodeStore, *, noise: float) -> str:
    """Return the commands that collect twice as many demonstrations in the same way and also train on them."""
    info = store.info
    fresh = next_free_path(store.path)
    words = ["act", "collect", "--task", info.task, "--n", str(2 * store.num_episodes), "--out", str(fresh)]
    sources = set(store.sources)
    if any(source.startswith("teleop") for source in sources):
        words += ["--demonstrator", "teleop"]
    else:
        words += ["--seed", str((info.seed or 0) + 1), "--noise", f"{noise:g}"]
        words += [f"steps_after_success={info.steps_after_success}"] if "scripted" in sources else []
    data = [*(dataset.path for dataset in case.datasets), fresh]
    return f"{shlex.join(words)} && {case.train_with({}, data=data)}"


def _wrong_data(case: RunCase, task: str | None = None) -> list[DatasetCase]:
    """Return the datasets, of one task if given, whose demonstrations are known to be wrong."""
    datasets = [dataset for dataset in case.datasets if task in (None, dataset.store.info.task)]
    return [dataset for dataset in datasets if dataset.soundness.labels_are_wrong]


def _describe_wrong_data(datasets: list[DatasetCase]) -> str:
    paths = ", ".join(str(dataset.path) for dataset in datasets)
    return f"The demonstrations in {paths} are wrong, so the loss on them is meaningless."


def _contradiction_note(case: RunCase) -> str:
    """Return a note that contradictory demonstrations limit the fit, unless all are by the scripted expert."""
    is_scripted = all(set(store.sources) <= {"scripted"} for store in case.stores)
    return "" if is_scripted else ". Demonstrations that contradict each other cannot be fitted better"


def _failing(case: RunCase) -> list[TaskRollouts]:
    return [result for result in case.results if not result.succeeds]


def _stores(case: RunCase, task: str) -> list[EpisodeStore]:
    stores = [store for store in case.stores if store.info.task == task]
    if not stores:
        raise DatasetError(f"The policy was trained on {task}, but the run names no dataset of it.")
    return stores


def _prefix(case: RunCase, task: str) -> str:
    """Return the task's name as the prefix of a message if the policy has several tasks, else ""."""
    return f"{task}: " if len(case.policy.tasks) > 1 else ""


def _success_rates(results: list[TaskRollouts]) -> str:
    """Return the success rates as text, with details if there is one task."""
    if len(results) == 1:
        return str(results[0])
    return _task_rates(results)


def _task_rates(results: list[TaskRollouts]) -> str:
    return ", ".join(f"{result.task} {result.fresh}" for result in results)
