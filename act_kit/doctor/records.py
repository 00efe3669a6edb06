"""Checks of the records of a run: metrics, TensorBoard files, and the selection of the best checkpoint."""

from __future__ import annotations

import json
import math

from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, untested, warning
from act_kit.errors import did_you_mean
from act_kit.files import quoted, read_json, read_text
from act_kit.metrics import METRICS, read_tensorboard
from act_kit.policies.storage import find_checkpoint
from act_kit.training.trainer import rollout_steps

CHECKS = Checks[RunCase]()

_NUM_ROLLOUTS = 10
"""Recommended number of evaluations during training if there are none; the default."""


@CHECKS.add(
    "undeclared metrics", stage="instrumentation", how_to_verify="compare metrics.jsonl with the declared names"
)
def metrics_readable(case: RunCase) -> Result:
    """Check that every recorded metric is declared and in its range."""
    path = case.folder / "metrics.jsonl"
    if not path.exists():
        return critical(f"{path} is missing: the training has no records.", path, case.train_again)
    step = -1
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = {str(key): float(value) for key, value in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError):
            if number == len(lines):
                continue  # incomplete because of a kill
            return critical(f"line {number} of metrics.jsonl is not a record.", path, case.train_again)
        for name, value in record.items():
            if name == "step":
                continue
            if name not in METRICS:
                return critical(
                    f"line {number} of metrics.jsonl holds '{name}', which is not a declared metric: tools that read "
                    f"the declared name do not find it.{did_you_mean(name, METRICS)}",
                    path,
                    case.train_again,
                )
            declared = METRICS[name]
            if not (math.isfinite(value) and declared.low <= value <= declared.high):
                return critical(
                    f"{name} = {value} at step {record.get('step')} is outside its range, {declared.low:g} to "
                    f"{declared.high:g}.",
                    path,
                    case.train_again,
                )
        if record.get("step", -1) < step:
            return critical(
                f"the steps in metrics.jsonl decrease at line {number}: two processes may have written it.",
                path,
                case.train_again,
            )
        step = int(record["step"])
    return ruled_out(f"{len(lines)} records, every name declared, every value in its range, steps in order.")


@CHECKS.add("missing records", stage="instrumentation", how_to_verify="count the records of each metric")
def metrics_complete(case: RunCase) -> Result:
    """Check that every metric of this configuration was recorded."""
    path = case.folder / "metrics.jsonl"
    steps, trainer = case.recorded, case.config.trainer
    last = _last_recorded_step(case)
    trained = _trained_steps(case)
    if last < trained:
        return critical(
            f"metrics.jsonl ends at step {last}, but the run has a checkpoint of step {trained}: the records of "
            f"{trained - last} steps are missing.",
            path,
            case.train_again,
        )
    if trained < trainer.steps:
        resume = f"act train --resume --out {quoted(case.folder)}"
        return warning(f"training stopped at step {trained} of {trainer.steps}.", path, resume)
    expected = {"train/loss": 1, "val/l1": trainer.steps // trainer.validate_every}
    if case.config.selection.num_evaluations:
        expected["eval/success"] = len(rollout_steps(trainer.steps, case.config.selection.num_evaluations))
    for name, num in expected.items():
        if len(steps.get(name, {})) < num:
            return critical(
                f"{name} was recorded {len(steps.get(name, {}))} times; this configuration measures it {num} times.",
                path,
                case.train_again,
            )
    if not case.config.selection.num_evaluations:
        return warning(
            "no evaluations during training: only the loss shows its progress, and no best checkpoint is selected.",
            case.folder / "config.yaml",
            case.train_with({"selection.num_evaluations": _NUM_ROLLOUTS}),
        )
    return ruled_out(f"All {trainer.steps} steps are recorded, with every metric.")


@CHECKS.add("records edited", stage="instrumentation", how_to_verify="compare metrics.jsonl with the TensorBoard files")
def as_written(case: RunCase) -> Result:
    """Check that metrics.jsonl and the TensorBoard files agree."""
    folder = case.folder / "tensorboard"
    written = read_tensorboard(folder) if folder.is_dir() else {}  # a kill may lose their latest records
    if not written:
        return untested("There are no TensorBoard files to compare metrics.jsonl with.")
    path = case.folder / "metrics.jsonl"
    last = _last_recorded_step(case)
    num = 0
    for name, values in written.items():
        recorded = case.recorded.get(name, {})
        for step, value in values.items():
            if step > last:  # missing records have their own check
                continue
            if step not in recorded or not math.isclose(recorded[step], value, rel_tol=1e-5, abs_tol=1e-7):
                return critical(
                    f"{name} at step {step} is {recorded.get(step, 'missing')} in metrics.jsonl and {value:.6g} in the "
                    "TensorBoard files, which are written from the same numbers: one of them was edited.",
                    path,
                    case.train_again,
                )
            num += 1
    return ruled_out(f"{num} records are the same in metrics.jsonl and in the TensorBoard files.")


def _last_recorded_step(case: RunCase) -> int:
    return max((max(values) for values in case.recorded.values() if values), default=0)


def _trained_steps(case: RunCase) -> int:
    """Return the step of the last checkpoint, independent of the records."""
    policy = find_checkpoint(case.folder / "checkpoints" / "last") / "policy.json"
    return int(read_json(policy)["metadata"]["step"])


@CHECKS.add("wrong best checkpoint", stage="instrumentation", how_to_verify="compare with the recorded success rates")
def best_is_best(case: RunCase) -> Result:
    """Check that the best checkpoint is the one with the highest success rate."""
    path = case.folder / "checkpoints" / "best"
    trained = _trained_steps(case)  # a kill may leave the record of a checkpoint that was not saved
    successes = {at: value for at, value in case.recorded.get("eval/success", {}).items() if at <= trained}
    if not successes:
        return untested("No checkpoint was selected by rollouts.")
    case.require_training_data()  # the records do not apply to a checkpoint of another run
    step = case.policy.metadata.step
    state = read_json(case.folder / "checkpoints" / "last" / "training.json")
    chosen = int(state["best_step"])
    if find_checkpoint(case.folder).name != "best" or step != chosen:
        return critical(
            f"act eval loads the policy of step {step}, but training selected that of step {chosen} "
            f"({state['best_successes']} successes in its rollouts).",
            path,
            case.train_again,
        )
    if step not in successes:
        return untested(f"metrics.jsonl has no success rate at step {step}, which training selected.")
    num = case.config.selection.episodes * len(case.policy.tasks)
    if round(successes[step] * num) != state["best_successes"]:
        return critical(
            f"the best checkpoint had {state['best_successes']} successes of {num} in its rollouts, but metrics.jsonl "
            f"has {100 * successes[step]:.0f} %: one of them was edited.",
            path,
            case.train_again,
        )
    top = max(successes.values())
    latest = max(at for at, value in successes.items() if value >= top - 1e-9)
    if latest != step:
        return critical(
            f"the best checkpoint (step {step}) has a success rate of {100 * successes[step]:.0f} %, that of step "
            f"{latest} {100 * top:.0f} %; the latest of those with the highest rate must be selected.",
            path,
            case.train_again,
        )
    return ruled_out(f"The best checkpoint (step {step}) has the highest success rate, {100 * top:.0f} %.")
