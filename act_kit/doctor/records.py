"""Checks of the records of a run: metrics, TensorBoard files, and the selection of the best checkpoint."""

from __future__ import annotations

import math
from itertools import chain

from act_kit.doctor.case import RunCase, run_checks
from act_kit.doctor.finding import Result, critical, ruled_out, untested, warning
from act_kit.errors import DamagedFileError, did_you_mean
from act_kit.files import quoted, read_json
from act_kit.metrics import METRICS, read_metrics, read_tensorboard
from act_kit.policies.storage import find_checkpoint
from act_kit.statistics import percent
from act_kit.training.schedule import rollout_steps

CHECKS = run_checks()

_NUM_ROLLOUTS = 10
"""Recommended number of evaluations during training if there are none; the default."""


@CHECKS.add("undeclared metrics", "instrumentation", "compare metrics.jsonl with the declared names", "metrics.jsonl")
def metrics_readable(case: RunCase) -> Result:
    """Check that every recorded metric is declared and in its range."""
    path = case.folder / "metrics.jsonl"
    if not path.exists():
        return critical(f"{path} is missing: the training has no records.")
    try:
        records = read_metrics(case.folder)
    except DamagedFileError as error:
        return critical(str(error))
    last_step = -1.0
    for number, record in enumerate(records, start=1):
        step = record.pop("step")
        for name, value in record.items():
            if name not in METRICS:
                return critical(
                    f"line {number} of metrics.jsonl holds '{name}', which is not a declared metric: tools that read "
                    f"the declared name do not find it.{did_you_mean(name, METRICS)}"
                )
            if not METRICS[name].accepts(value):
                return critical(f"{name} = {value} at step {step} is outside its range, {METRICS[name].range}.")
        if step < last_step:
            return critical(f"the steps in metrics.jsonl decrease at line {number}: two processes may have written it.")
        last_step = step
    return ruled_out(f"{len(records)} records, every name declared, every value in its range, steps in order.")


@CHECKS.add("missing records", "instrumentation", "count the records of each metric", "metrics.jsonl")
def metrics_complete(case: RunCase) -> Result:
    """Check that every metric of this configuration was recorded."""
    trainer, num_evaluations = case.config.trainer, case.config.selection.num_evaluations
    last, trained = _last_recorded_step(case), _trained_steps(case)
    if last < trained:
        return critical(
            f"metrics.jsonl ends at step {last}, but the run has a checkpoint of step {trained}: the records of "
            f"{trained - last} steps are missing."
        )
    if trained < trainer.steps:
        resume = f"act train --resume --out {quoted(case.folder)}"
        return warning(f"training stopped at step {trained} of {trainer.steps}.", fix=resume)
    expected = {"train/loss": 1, "val/l1": trainer.steps // trainer.validate_every}
    if num_evaluations:
        expected["eval/success"] = len(rollout_steps(trainer.steps, num_evaluations))
    for name, num in expected.items():
        num_recorded = len(case.recorded.get(name, {}))
        if num_recorded < num:
            return critical(f"{name} was recorded {num_recorded} times; this configuration measures it {num} times.")
    if not num_evaluations:
        message = (
            "no evaluations during training: only the loss shows its progress, and no best checkpoint is selected."
        )
        fix = case.train_with({"selection.num_evaluations": _NUM_ROLLOUTS})
        return warning(message, case.folder / "config.yaml", fix)
    return ruled_out(f"All {trainer.steps} steps are recorded, with every metric.")


@CHECKS.add("records edited", "instrumentation", "compare metrics.jsonl with the TensorBoard files", "metrics.jsonl")
def as_written(case: RunCase) -> Result:
    """Check that metrics.jsonl and the TensorBoard files agree."""
    folder = case.folder / "tensorboard"
    written = read_tensorboard(folder) if folder.is_dir() else {}  # a kill may lose their latest records
    if not written:
        return untested("There are no TensorBoard files to compare metrics.jsonl with.")
    last = _last_recorded_step(case)
    num = 0
    for name, values in written.items():
        recorded = case.recorded.get(name, {})
        for step, value in values.items():
            if step > last:  # missing records have their own check
                continue
            if not math.isclose(recorded.get(step, math.nan), value, rel_tol=1e-5, abs_tol=1e-7):
                return critical(
                    f"{name} at step {step} is {recorded.get(step, 'missing')} in metrics.jsonl and {value:.6g} in the "
                    "TensorBoard files, which are written from the same numbers: one of them was edited."
                )
            num += 1
    return ruled_out(f"{num} records are the same in metrics.jsonl and in the TensorBoard files.")


def _last_recorded_step(case: RunCase) -> int:
    return max(chain.from_iterable(case.recorded.values()), default=0)


def _trained_steps(case: RunCase) -> int:
    """Return the step of the last checkpoint, independent of the records."""
    policy = find_checkpoint(case.folder / "checkpoints" / "last") / "policy.json"
    return int(read_json(policy)["metadata"]["step"])


@CHECKS.add("wrong best checkpoint", "instrumentation", "compare with the recorded success rates", "checkpoints/best")
def best_is_best(case: RunCase) -> Result:
    """Check that the best checkpoint is the one with the highest success rate."""
    trained = _trained_steps(case)  # a kill may leave the record of a checkpoint that was not saved
    successes = {at: value for at, value in case.recorded.get("eval/success", {}).items() if at <= trained}
    if not successes:
        return untested("No checkpoint was selected by rollouts.")
    case.require_training_data()  # the records do not apply to a checkpoint of another run
    step = case.policy.metadata.step
    state = read_json(case.folder / "checkpoints" / "last" / "training.json")
    chosen, num_best = int(state["best_step"]), state["best_successes"]
    if find_checkpoint(case.folder).name != "best" or step != chosen:
        return critical(
            f"act eval loads the policy of step {step}, but training selected that of step {chosen} "
            f"({num_best} successes in its rollouts)."
        )
    if step not in successes:
        return untested(f"metrics.jsonl has no success rate at step {step}, which training selected.")
    num = case.config.selection.episodes_per_task(len(case.policy.tasks)) * len(case.policy.tasks)
    rate = f"{percent(successes[step])} %"
    if round(successes[step] * num) != num_best:
        return critical(
            f"the best checkpoint had {num_best} successes of {num} in its rollouts, but metrics.jsonl has {rate}: "
            "one of them was edited."
        )
    top = max(successes.values())
    latest = max(at for at, value in successes.items() if value >= top - 1e-9)
    if latest != step:
        return critical(
            f"the best checkpoint (step {step}) has a success rate of {rate}, that of step {latest} "
            f"{percent(top)} %; the latest of those with the highest rate must be selected."
        )
    return ruled_out(f"The best checkpoint (step {step}) has the highest success rate, {percent(top)} %.")
