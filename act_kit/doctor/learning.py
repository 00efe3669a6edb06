"""What a policy has learnt, and where it fails."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from act_kit.config import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor.case import DatasetCase, RunCase, TaskRollouts
from act_kit.doctor.finding import Checks, Result, ruled_out, suspected, untested
from act_kit.doctor.generalization import evenly, measure_loss
from act_kit.errors import DatasetError
from act_kit.files import free_beside, quoted
from act_kit.overrides import option, preset_of

CHECKS = Checks[RunCase]()

_HARDLY = 0.5
"""Of the loss of predicting nothing, from which a policy is said to have hardly learnt anything."""

_LIKELY = 0.01
"""p-value at which a measured difference is suspected to be more than chance."""

_NUM_TOLD = 5
"""Tasks that a policy fails in, of which the causes are told."""

_FACTORS = {
    "trainer.lr": (5, 5),
    "trainer.batch_size": (8, math.inf),
    "trainer.steps": (4, math.inf),
    "trainer.warmup_fraction": (math.inf, 5),
    "trainer.grad_clip": (100, math.inf),
    "trainer.kl_weight": (100, 10),
    "trainer.weight_decay": (math.inf, 100),
    "policy.dim_model": (6, math.inf),
    "policy.dim_feedforward": (12, math.inf),
    "policy.chunk_size": (8, 5),
    "chunking.n_action_steps": (math.inf, 3),
}
"""By which an option lies far below and far above its preset: so far that it may well be why a policy fails."""

_DROPOUT = 0.2
"""More than the preset's, likewise."""

_AVERAGED = 0.2
"""Of the steps: a moving average of the weights over more of them still holds those from before training."""


@CHECKS.add(
    "settings far from the preset", stage="learning", how_to_verify="train with the preset's values, and compare"
)
def settings(case: RunCase) -> Result:
    """If it fails: was it trained with settings that nobody found to work?"""
    far = far_from_preset(case.config)
    if not far:
        return ruled_out("No setting is far from its preset's.")
    message = ", ".join(f"{setting.key}={setting.value:g} (the preset: {setting.preset:g})" for setting in far)
    if not _failing(case):
        return ruled_out(f"Far from the preset: {message}; but the policy succeeds.")
    if [setting.key for setting in far] == ["trainer.steps"]:
        return ruled_out(f"No setting but the number of steps is far from its preset's: {message}.")
    return suspected(
        f"the policy fails, and was trained with {message}.", case.folder / "config.yaml", _with_preset(case, far),
        severity="critical",
    )  # fmt: skip


@CHECKS.add("hardly trained", stage="learning", how_to_verify="train longer, and compare the loss")
def under_trained(case: RunCase) -> Result:
    """Does the policy fit even what it was shown?"""
    failing = _failing(case)
    if not failing:
        return ruled_out(f"It does not fail: {_told(case.results)}.")
    wrong = _wrong_data(case)
    if wrong:
        return untested(_wrong(wrong))
    fits = {result.task: _Fit.of(case, result.task) for result in failing}
    unfit = {task: fit for task, fit in fits.items() if fit.is_hardly_any}
    if unfit:
        message = "; ".join(f"{_named(case, task)}{fit}" for task, fit in list(unfit.items())[:_NUM_TOLD])
        return suspected(
            f"it has hardly learnt what it was shown: {message}{_labels_doubted(case)}.", case.folder / "metrics.jsonl",
            _train_more(case), severity="critical",
        )  # fmt: skip
    message = "; ".join(f"{_named(case, task)}{fit}" for task, fit in fits.items())
    return ruled_out(f"It fits what it was shown: {message}.")


@CHECKS.add("learnt by heart", stage="learning", how_to_verify="roll out from demonstrated and from fresh starts")
def generalizes(case: RunCase) -> Result:
    """Is the loss on fresh demonstrations what the loss on held-out ones promised?"""
    failing = {result.task for result in _failing(case)}
    if not failing:
        return ruled_out(f"It succeeds from fresh starts: {_told(case.results)}.")
    wrong = _wrong_data(case)
    if wrong:
        return untested(_wrong(wrong))
    gaps, reasons = case.gaps
    alarming = {task: gap for task, gap in gaps.items() if gap.is_alarming and task in failing}
    if alarming:
        message = "; ".join(f"{_named(case, task)}{gap}" for task, gap in alarming.items())
        data = [str(dataset.path) for dataset in case.datasets if dataset.store.info.task in alarming]
        fix = " && ".join(f"act report {quoted(path)}" for path in data)
        return suspected(f"it has learnt its starts by heart: {message}.", "fresh demonstrations of the doctor", fix)
    if reasons:
        return untested(" ".join(reasons))
    return ruled_out("No alarming gap: " + "; ".join(f"{_named(case, task)}{gap}" for task, gap in gaps.items()) + ".")


@CHECKS.add("it fails", stage="rollouts", how_to_verify="act eval RUN --record-video")
def interpretation(case: RunCase) -> Result:
    """If it fails: where does it fail, and what does that say?"""
    failing = sorted(_failing(case), key=lambda result: result.fresh.value)
    if not failing:
        return ruled_out(f"It does not fail: {_told(case.results)}.")
    causes = [(result, *_cause(case, result)) for result in failing[:_NUM_TOLD]]
    parts = [f"{_named(case, result.task)}{result}, expert {result.expert}: {cause}" for result, cause, _ in causes]
    if failing[_NUM_TOLD:]:
        parts.append("it also fails in " + ", ".join(result.task for result in failing[_NUM_TOLD:]))
    others = [result for result in case.results if result.succeeds]
    if others:
        parts.append(f"it does not fail in {_rates(others)}")
    return suspected("; ".join(parts) + ".", "rollouts of the doctor", causes[0][2], severity="critical")


def _cause(case: RunCase, result: TaskRollouts) -> tuple[str, str]:
    """Say what the numbers of a task that it fails in point to, and what to do about it."""
    wrong = _wrong_data(case, result.task)
    if wrong:
        cause = f"the demonstrations in {wrong[0].path} are wrong"
        return cause, case.train_on_fixed(wrong[0], wrong[0].soundness.fix_for(wrong[0].store))
    stores = _stores(case, result.task)
    fit = _Fit.of(case, result.task)
    gaps, _ = case.gaps
    gap = gaps.get(result.task)
    look = f"act report {quoted(stores[0].path)}"
    if fit.is_hardly_any:
        return "it has hardly learnt what it was shown", _train_more(case)
    if _depends_on_init_state(result):
        if gap is None:
            return "the demonstrations do not cover the starts, or it drifts from what was demonstrated", look
        if gap.is_alarming:
            return "the demonstrations do not cover the starts", look
        cause = "it drifts from what was demonstrated, or the evaluation differs from the demonstrations"
        return cause, _collect_more(case, stores[0], noise=max(0.1, stores[0].info.noise))
    if gap is not None and gap.is_alarming:
        return "it was trained too little, is too small, or on bad demonstrations", _train_more(case)
    held_out = max(measure_loss(case.policy, store, evenly(case.split(store)[1], 10)).value for store in stores)
    if held_out > 2 * fit.loss:
        cause = (
            f"it knows its training episodes by heart (L1 {fit.loss:.3f}, on others {held_out:.3f}): too few of them"
        )
        return cause, _collect_more(case, stores[0], noise=stores[0].info.noise)
    cause = (
        f"it predicts what is near to what was demonstrated (L1 {fit.loss:.3f} on its training episodes), but not near "
        "enough, or it drifts, or its chunks are carried out wrongly (act eval RUN --sweep-chunking)"
    )
    return cause, _train_more(case)


def _depends_on_init_state(result: TaskRollouts) -> bool:
    """Tell whether it succeeds from demonstrated initial states where it fails from fresh ones."""
    shown, fresh = result.shown, result.fresh
    if shown is None:
        return False
    table = [[shown.successes, shown.num - shown.successes], [fresh.successes, fresh.num - fresh.successes]]
    return bool(fisher_exact(table, alternative="greater").pvalue < _LIKELY)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How well a policy fits what it was shown of a task.

    Attributes:
        loss: L1 on some of its training episodes, the mean over the datasets.
        of_nothing: That of predicting zeros, or the mean action, whichever is less.
    """

    loss: float
    of_nothing: float

    @classmethod
    def of(cls, case: RunCase, task: str) -> _Fit:
        stores = _stores(case, task)
        losses = [measure_loss(case.policy, store, evenly(case.split(store)[0], 10)).value for store in stores]
        actions = [store.steps("action") for store in stores]
        zeros = np.mean([np.abs(of_store).mean() for of_store in actions])
        means = np.mean([np.abs(of_store - of_store.mean(axis=0)).mean() for of_store in actions])
        return cls(loss=float(np.mean(losses)), of_nothing=float(min(zeros, means)))

    @property
    def is_hardly_any(self) -> bool:
        return self.loss > _HARDLY * self.of_nothing

    def __str__(self) -> str:
        return (
            f"L1 is {self.loss:.3f} on the very demonstrations it was trained on; a constant action has "
            f"{self.of_nothing:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An option that is far from its preset.

    Attributes:
        key: Dotted.
        value, preset: What it is, and what it is there.
        farness: 1 where it begins to be far.
    """

    key: str
    value: float
    preset: float
    farness: float


def far_from_preset(config: TrainConfig) -> list[Setting]:
    """Return the options that are so far from their preset that a policy may fail for it, the farthest first."""
    _, preset = preset_of(config)
    far: list[Setting] = []

    def add(key: str, farness: float) -> None:
        if farness > 1:
            value, usual = float(option(config, key)), float(option(preset, key))
            far.append(Setting(key=key, value=value, preset=usual, farness=farness))

    for key, (below, above) in _FACTORS.items():
        value, usual = float(option(config, key)), float(option(preset, key))
        if value <= 0:
            add(key, 2.0 if math.isfinite(below) and usual > 0 else 0.0)
            continue
        off = math.log(value / usual)
        add(key, off / math.log(above) if off > 0 else -off / math.log(below))
    add("policy.dropout", (config.policy.dropout - preset.policy.dropout) / _DROPOUT)
    add(
        "trainer.ema_decay",
        1 / (1 - config.trainer.ema_decay) / (_AVERAGED * config.trainer.steps) if config.trainer.ema_decay else 0.0,
    )
    return sorted(far, key=lambda setting: -setting.farness)


def _with_preset(case: RunCase, far: list[Setting]) -> str:
    """Return the command that trains again with the preset's values of some settings."""
    _, preset = preset_of(case.config)
    return case.train_with({setting.key: option(preset, setting.key) for setting in far})


def _train_more(case: RunCase) -> str:
    """Return the command that trains with the preset's values of what is far from them, otherwise twice as long."""
    far = far_from_preset(case.config)
    return _with_preset(case, far) if far else case.train_with({"trainer.steps": 2 * case.config.trainer.steps})


def _collect_more(case: RunCase, store: EpisodeStore, *, noise: float) -> str:
    """Return the commands that collect twice as many demonstrations in the same way, and train on them too."""
    info = store.info
    fresh = free_beside(store.path)
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
    """Return the datasets, perhaps of one task, whose demonstrations are known to be wrong."""
    datasets = [dataset for dataset in case.datasets if task in (None, dataset.store.info.task)]
    return [dataset for dataset in datasets if dataset.soundness.labels_are_wrong]


def _wrong(datasets: list[DatasetCase]) -> str:
    paths = ", ".join(str(dataset.path) for dataset in datasets)
    return f"The demonstrations in {paths} are wrong, so no loss on them says what the policy has learnt."


def _labels_doubted(case: RunCase) -> str:
    """Say that others than the expert may be hard to fit because they contradict themselves; "" of the expert."""
    scripted = all(source == "scripted" for store in case.stores for source in store.sources)
    return "" if scripted else ". Demonstrations that contradict each other cannot be fitted better"


def _failing(case: RunCase) -> list[TaskRollouts]:
    return [result for result in case.results if not result.succeeds]


def _stores(case: RunCase, task: str) -> list[EpisodeStore]:
    stores = [store for store in case.stores if store.info.task == task]
    if not stores:
        raise DatasetError(f"The policy does {task}, but the run names no dataset of it.")
    return stores


def _named(case: RunCase, task: str) -> str:
    """Return the task's name before what is said of it, where there are several."""
    return f"{task}: " if len(case.policy.tasks) > 1 else ""


def _told(results: list[TaskRollouts]) -> str:
    """Say how it does in some tasks."""
    if len(results) == 1:
        return str(results[0])
    return _rates(results)


def _rates(results: list[TaskRollouts]) -> str:
    return ", ".join(f"{result.task} {result.fresh}" for result in results)
