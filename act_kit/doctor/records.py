"""What may be wrong with what a run wrote down about itself."""

from __future__ import annotations

import json
import math

from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, untested, warning
from act_kit.errors import did_you_mean
from act_kit.files import quoted, read_json, read_text
from act_kit.metrics import METRICS, read_tensorboard
from act_kit.policies.policy import find_checkpoint
from act_kit.training.trainer import rollout_steps

CHECKS = Checks[RunCase]()

_NUM_ROLLOUTS = 10
"""Rollouts on the way that are advised where there are none; as many as by default."""


@CHECKS.add(
    "metrics under other names", stage="instrumentation", how_to_verify="read metrics.jsonl against the declared names"
)
def metrics_readable(case: RunCase) -> Result:
    """Is every number on record one that a reader would find?"""
    path = case.folder / "metrics.jsonl"
    if not path.exists():
        return critical(f"{path} is missing: nothing of this training is on record.", path, case.train_again)
    step = -1
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = {str(key): float(value) for key, value in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError):
            if number == len(lines):
                continue  # torn by a kill
            return critical(f"line {number} of metrics.jsonl is not a record.", path, case.train_again)
        for name, value in record.items():
            if name == "step":
                continue
            if name not in METRICS:
                return critical(
                    f"line {number} of metrics.jsonl holds '{name}', which is not a declared metric: whoever reads the "
                    f"declared name finds nothing there.{did_you_mean(name, METRICS)}", path, case.train_again,
                )  # fmt: skip
            declared = METRICS[name]
            if not (math.isfinite(value) and declared.low <= value <= declared.high):
                return critical(
                    f"{name} = {value} at step {record.get('step')}: not in its range, {declared.low:g} to "
                    f"{declared.high:g}.", path, case.train_again,
                )  # fmt: skip
        if record.get("step", -1) < step:
            return critical(
                f"the steps in metrics.jsonl go back at line {number}: two writers?", path, case.train_again
            )
        step = int(record["step"])
    return ruled_out(f"{len(lines)} records, every name declared, every value in its range, one step counter.")


@CHECKS.add("missing records", stage="instrumentation", how_to_verify="count the records of each metric")
def metrics_complete(case: RunCase) -> Result:
    """Was everything recorded that this configuration measures?"""
    path = case.folder / "metrics.jsonl"
    steps, trainer = case.recorded, case.config.trainer
    last = max((step for of_name in steps.values() for step in of_name), default=0)
    trained = _trained_steps(case)
    if last < trained:
        return critical(
            f"metrics.jsonl ends at step {last}, but the run has a checkpoint of step {trained}: the records of "
            f"{trained - last} steps were cut off.", path, case.train_again,
        )  # fmt: skip
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
                path, case.train_again,
            )  # fmt: skip
    if not case.config.selection.num_evaluations:
        return warning(
            "no rollouts on the way: nothing but the loss tells how training went, and no checkpoint is the best.",
            case.folder / "config.yaml", case.train_with({"selection.num_evaluations": _NUM_ROLLOUTS}),
        )  # fmt: skip
    return ruled_out(f"All {trainer.steps} steps are on record, with every measurement.")


@CHECKS.add("records edited", stage="instrumentation", how_to_verify="compare metrics.jsonl with the TensorBoard files")
def as_written(case: RunCase) -> Result:
    """Do both files of records say the same?"""
    folder = case.folder / "tensorboard"
    written = read_tensorboard(folder) if folder.is_dir() else {}  # a kill may have cost them the latest ones
    if not written:
        return untested("There are no TensorBoard files to compare metrics.jsonl with.")
    path = case.folder / "metrics.jsonl"
    last = max((step for of_name in case.recorded.values() for step in of_name), default=0)
    num = 0
    for name, of_name in written.items():
        recorded = case.recorded.get(name, {})
        for step, value in of_name.items():
            if step > last:  # cut off: see above
                continue
            if step not in recorded or not math.isclose(recorded[step], value, rel_tol=1e-5, abs_tol=1e-7):
                return critical(
                    f"{name} at step {step} is {recorded.get(step, 'missing')} in metrics.jsonl and {value:.6g} in the "
                    "TensorBoard files, which are written from the same numbers: one of them was edited.",
                    path, case.train_again,
                )  # fmt: skip
            num += 1
    return ruled_out(f"{num} records are the same in metrics.jsonl and in the TensorBoard files.")


def _trained_steps(case: RunCase) -> int:
    """Return the step of the last checkpoint, which is how far training got, whatever the records say."""
    policy = find_checkpoint(case.folder / "checkpoints" / "last") / "policy.json"
    return int(read_json(policy)["contract"]["step"])


@CHECKS.add("best is not the best", stage="instrumentation", how_to_verify="compare with the records of its rollouts")
def best_is_best(case: RunCase) -> Result:
    """Is the checkpoint called best the one that succeeded most?"""
    path = case.folder / "checkpoints" / "best"
    trained = _trained_steps(case)  # a kill may leave a rollout on record whose checkpoint was not saved
    successes = {at: value for at, value in case.recorded.get("eval/success", {}).items() if at <= trained}
    if not successes:
        return untested("No rollouts chose a checkpoint.")
    case.require_training_data()  # of another run's checkpoint, these records say nothing
    step = case.policy.contract.step
    state = read_json(case.folder / "checkpoints" / "last" / "training.json")
    chosen = int(state["best_step"])
    if find_checkpoint(case.folder).name != "best" or step != chosen:
        return critical(
            f"the policy in use is that of step {step}, but training chose that of step {chosen} "
            f"({state['best_successes']} successes in its rollouts).", path, case.train_again,
        )  # fmt: skip
    if step not in successes:
        return untested(f"metrics.jsonl has no rollout of step {step}, which training chose.")
    num = case.config.selection.episodes * len(case.policy.tasks)
    if round(successes[step] * num) != state["best_successes"]:
        return critical(
            f"the best checkpoint had {state['best_successes']} successes of {num} in its rollouts, metrics.jsonl says "
            f"{100 * successes[step]:.0f} %: one of them was edited.", path, case.train_again,
        )  # fmt: skip
    top = max(successes.values())
    latest = max(at for at, value in successes.items() if value >= top - 1e-9)
    if latest != step:
        return critical(
            f"the checkpoint called best (step {step}) succeeded {100 * successes[step]:.0f} % of the time in its "
            f"rollouts, that of step {latest} {100 * top:.0f} %; the latest of the best is to be chosen.",
            path, case.train_again,
        )  # fmt: skip
    return ruled_out(
        f"The best checkpoint (step {step}) had {100 * top:.0f} % success in its rollouts, the most of all."
    )
