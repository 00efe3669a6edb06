"""Checks of what a policy has learned, and in which tasks it fails."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import fisher_exact

from act_kit import options
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor.case import DatasetCase, RunCase, TaskRollouts, run_checks
from act_kit.doctor.finding import Result, ruled_out, suspected, untested
from act_kit.doctor.generalization import Gap, evenly, measure_loss
from act_kit.errors import DatasetError
from act_kit.files import next_free_path, quoted
from act_kit.overrides import preset_of
from act_kit.training.schedule import num_chunks, with_schedule

CHECKS = run_checks()

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
    "chunking.n_action_steps": (math.inf, 5),
}
"""Factors below and above its preset beyond which an option may be the cause of a low success rate.

A model adds its own: :attr:`~act_kit.config.policy.PolicyConfig.far_factors`.
"""

_DROPOUT = 0.2
"""Difference from the preset's dropout beyond which dropout may be the cause."""

_AVERAGED = 0.2
"""Fraction of the steps: a moving average of the weights over more steps still contains the initial weights."""


@CHECKS.add("settings far from the preset", "learning", "train with the preset's values, and compare", "config.yaml")
def settings(case: RunCase) -> Result:
    """Check that a failing policy was not trained with settings far from the preset."""
    chunks = num_chunks(case.stores)
    far = far_from_preset(case.config, chunks)
    if not far:
        return ruled_out("No setting is far from the preset.")
    preset = with_schedule(preset_of(case.config)[1], chunks)
    message = ", ".join(
        f"{key}={options.get(case.config, key):g} (preset: {options.get(preset, key):g})" for key in far
    )
    if not _failing(case):
        return ruled_out(f"Far from the preset: {message}; but the policy succeeds.")
    if far == ["trainer.steps"]:
        return ruled_out(f"Only the number of steps is far from the preset: {message}.")
    fix = _with_preset(case, far)
    return suspected(f"the policy fails, and was trained with {message}.", fix=fix, severity="critical")


@CHECKS.add("underfitting", "learning", "train longer, and compare the loss", "metrics.jsonl")
def under_trained(case: RunCase) -> Result:
    """Check that a failing policy fits its training demonstrations."""
    excluded = _excluded(case, f"The policy does not fail: {_success_rates(case.results)}.")
    if excluded:
        return excluded
    fits, unfit = [], []
    for result in _failing(case):
        loss, constant_loss = _losses(case, result.task)
        fits.append(
            f"{_prefix(case, result.task)}L1 is {loss:.3f} on the training demonstrations; that of a constant action "
            f"is {constant_loss:.3f}"
        )
        if loss > _UNDERFITTING * constant_loss:
            unfit.append(fits[-1])
    if not unfit:
        return ruled_out(f"The policy fits its training demonstrations: {'; '.join(fits)}.")
    message = f"the policy is underfitting: {'; '.join(unfit[:_MAX_TASKS])}"
    if any(set(store.sources) - {"scripted"} for store in case.stores):
        message += ". Demonstrations that contradict each other cannot be fitted better"
    return suspected(f"{message}.", fix=_train_more(case), severity="critical")


@CHECKS.add("memorizes its initial states", "learning", "run rollouts from demonstrated and from test initial states")
def generalizes(case: RunCase) -> Result:
    """Check that the loss on new demonstrations is close to the loss on held-out ones."""
    excluded = _excluded(case, f"The policy succeeds from test initial states: {_success_rates(case.results)}.")
    if excluded:
        return excluded
    gaps, reasons = case.gaps
    alarming = {}
    for result in _failing(case):
        gap = gaps.get(result.task)
        if gap and gap.is_alarming:
            alarming[result.task] = gap
    if alarming:
        fix = " && ".join(f"act report {quoted(s.path)}" for s in case.stores if s.info.task in alarming)
        message = f"the policy memorizes its initial states: {_describe_gaps(case, alarming)}."
        return suspected(message, "new demonstrations of the doctor", fix)
    if reasons:
        return untested(" ".join(reasons))
    return ruled_out(f"No alarming gap: {_describe_gaps(case, gaps)}.")


def _describe_gaps(case: RunCase, gaps: Mapping[str, Gap]) -> str:
    return "; ".join(f"{_prefix(case, task)}{gap}" for task, gap in gaps.items())


@CHECKS.add("low success rate", "rollouts", "act eval RUN --record-video")
def interpretation(case: RunCase) -> Result:
    """Report in which tasks the policy fails, and the probable causes."""
    failing = sorted(_failing(case), key=lambda result: result.fresh.value)
    if not failing:
        return ruled_out(f"The policy does not fail: {_success_rates(case.results)}.")
    parts, fixes = [], []
    for result in failing[:_MAX_TASKS]:
        cause, fix = _cause(case, result)
        parts.append(f"{_prefix(case, result.task)}{result}, expert {result.expert}: {cause}")
        fixes.append(fix)
    if failing[_MAX_TASKS:]:
        parts.append("the policy also fails in " + ", ".join(result.task for result in failing[_MAX_TASKS:]))
    others = [result for result in case.results if result.succeeds]
    if others:
        parts.append(f"the policy does not fail in {_task_rates(others)}")
    return suspected("; ".join(parts) + ".", "rollouts of the doctor", fixes[0], severity="critical")


def _cause(case: RunCase, result: TaskRollouts) -> tuple[str, str]:
    """Return the probable cause of the failures in a task, and the fix."""
    for dataset in _wrong_data(case):
        if dataset.store.info.task == result.task:
            fix = case.train_on_fixed(dataset, dataset.soundness.fix_for(dataset.store))
            return f"the demonstrations in {dataset.path} are wrong", fix
    stores = _stores(case, result.task)
    loss, constant_loss = _losses(case, result.task)
    gap = case.gaps[0].get(result.task)
    report = f"act report {quoted(stores[0].path)}"
    noise = stores[0].info.noise
    if loss > _UNDERFITTING * constant_loss:
        return "the policy is underfitting", _train_more(case)
    if _depends_on_init_state(result):
        if gap is None:
            cause = "the demonstrations do not cover the initial states, or the policy drifts from the demonstrations"
            return cause, report
        if gap.is_alarming:
            return "the demonstrations do not cover the initial states", report
        cause = "the policy drifts from the demonstrations, or the evaluation differs from them"
        return cause, _collect_more(case, stores[0], noise=max(0.1, noise))
    if gap is not None and gap.is_alarming:
        return "the training was too short, the model is too small, or the demonstrations are bad", _train_more(case)
    held_out = max(measure_loss(case.policy, store, evenly(case.split(store)[1], 10)).value for store in stores)
    if held_out > 2 * loss:
        cause = (
            f"the policy overfits its training episodes (L1 {loss:.3f}, on others {held_out:.3f}): there are too few "
            "of them"
        )
        return cause, _collect_more(case, stores[0], noise=noise)
    cause = (
        f"the predictions are close to the demonstrations (L1 {loss:.3f} on the training episodes), but not close "
        "enough, or the policy drifts, or its chunks are executed wrongly (act eval RUN --sweep-chunking)"
    )
    return cause, _train_more(case)


def _depends_on_init_state(result: TaskRollouts) -> bool:
    """Return True if the policy succeeds more often from demonstrated initial states than from test ones."""
    if result.demonstrated is None:
        return False
    successes = np.array([result.demonstrated.successes, result.fresh.successes])
    failures = np.array([result.demonstrated.num, result.fresh.num]) - successes
    return bool(fisher_exact(np.stack([successes, failures], axis=1), alternative="greater").pvalue < _SIGNIFICANCE)


def _losses(case: RunCase, task: str) -> tuple[float, float]:
    """Return two L1 losses in a task, means over its datasets.

    The first is the policy's on some of its training episodes; the second that of predicting zeros or the mean action,
    whichever is less.
    """
    losses, zeros, means = [], [], []
    for store in _stores(case, task):
        actions = store.steps("action")
        losses.append(measure_loss(case.policy, store, evenly(case.split(store)[0], 10)).value)
        zeros.append(np.abs(actions).mean())
        means.append(np.abs(actions - actions.mean(axis=0)).mean())
    return float(np.mean(losses)), float(min(np.mean(zeros), np.mean(means)))


def far_from_preset(config: TrainConfig, chunks: int) -> list[str]:
    """Return the options so far from their preset that they may cause a low success rate, the farthest first.

    ``chunks`` is the number of chunks in the data, on which the preset's number of steps depends.
    """
    preset = with_schedule(preset_of(config)[1], chunks)
    factors = dict(_FACTORS)
    for name, limits in config.policy.far_factors.items():
        factors[f"policy.{name}"] = limits
    farness = {}
    for key, (below, above) in factors.items():
        value, usual = float(options.get(config, key)), float(options.get(preset, key))
        if value <= 0:
            farness[key] = 2.0 if math.isfinite(below) and usual > 0 else 0.0
        else:
            off = math.log(value / usual)
            farness[key] = off / math.log(above) if off > 0 else -off / math.log(below)
    if hasattr(config.policy, "dropout"):
        extra = options.get(config, "policy.dropout") - options.get(preset, "policy.dropout")
        farness["policy.dropout"] = extra / _DROPOUT
    if config.trainer.ema_decay:
        num_averaged = 1 / (1 - config.trainer.ema_decay)
        farness["trainer.ema_decay"] = num_averaged / (_AVERAGED * config.trainer.steps)
    far = filter(lambda key: farness[key] > 1, farness)
    return sorted(far, key=farness.__getitem__, reverse=True)


def _with_preset(case: RunCase, keys: Sequence[str]) -> str:
    """Return the command that trains again with the preset's values of some options."""
    _, preset = preset_of(case.config)
    return case.train_with({key: options.get(preset, key) for key in keys})


def _train_more(case: RunCase) -> str:
    """Return the command that trains with the preset's values if any setting is far from them, else twice as long."""
    far = far_from_preset(case.config, num_chunks(case.stores))
    return _with_preset(case, far) if far else case.train_with({"trainer.steps": 2 * case.config.trainer.steps})


def _collect_more(case: RunCase, store: EpisodeStore, *, noise: float) -> str:
    """Return the commands that collect twice as many demonstrations in the same way and also train on them."""
    info = store.info
    fresh = next_free_path(store.path)
    words = ["act", "collect", "--task", info.task, "--n", str(2 * store.num_episodes), "--out", str(fresh)]
    if any(source.startswith("teleop") for source in store.sources):
        words += ["--demonstrator", "teleop"]
    else:
        words += ["--seed", str((info.seed or 0) + 1), "--noise", f"{noise:g}"]
        words += [f"steps_after_success={info.steps_after_success}"] if "scripted" in store.sources else []
    return f"{shlex.join(words)} && {case.train_with({}, data=[*case.data, fresh])}"


def _excluded(case: RunCase, message: str) -> Result | None:
    """Return the result of a check of failing policies if none fails, or if the loss is meaningless, else None."""
    if not _failing(case):
        return ruled_out(message)
    wrong = ", ".join(str(dataset.path) for dataset in _wrong_data(case))
    if wrong:
        return untested(f"The demonstrations in {wrong} are wrong, so the loss on them is meaningless.")
    return None


def _wrong_data(case: RunCase) -> list[DatasetCase]:
    """Return the datasets whose demonstrations are known to be wrong."""
    return [dataset for dataset in case.datasets if dataset.soundness.labels_are_wrong]


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


def _success_rates(results: Sequence[TaskRollouts]) -> str:
    """Return the success rates as text, with details if there is one task."""
    return str(results[0]) if len(results) == 1 else _task_rates(results)


def _task_rates(results: Sequence[TaskRollouts]) -> str:
    return ", ".join(f"{result.task} {result.fresh}" for result in results)
