"""What may be wrong with what a run wrote down about itself."""

from __future__ import annotations

import json
import math

from act_kit.diagnosis.case import RunCase
from act_kit.diagnosis.finding import Checks, Result, critical, ruled_out, untested, warning
from act_kit.errors import did_you_mean
from act_kit.policy.policy import find_checkpoint
from act_kit.telemetry import METRICS
from act_kit.training.trainer import rollout_steps

CHECKS = Checks[RunCase]()


@CHECKS.add(
    "metrics under other names", stage="instrumentation", settle="read metrics.jsonl against the declared names"
)
def metrics_readable(case: RunCase) -> Result:
    """Is every number on record one that a reader would find?"""
    path = case.folder / "metrics.jsonl"
    if not path.exists():
        return critical(f"{path} is missing: nothing of this training is on record.", path, case.train_again)
    step = -1
    lines = path.read_text().splitlines()
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


@CHECKS.add("missing records", stage="instrumentation", settle="count the records of each metric")
def metrics_complete(case: RunCase) -> Result:
    """Was everything recorded that this configuration measures?"""
    path = case.folder / "metrics.jsonl"
    steps, trainer = case.recorded, case.config.trainer
    last = max((step for of_name in steps.values() for step in of_name), default=0)
    if last < trainer.steps:
        return warning(
            f"training stopped at step {last} of {trainer.steps}.", path, f"act train --resume --out {case.folder}"
        )
    expected = {"train/loss": 1, "val/l1_prior": trainer.steps // trainer.validate_every}
    if case.config.selection.rollouts:
        expected["eval/success"] = len(rollout_steps(trainer.steps, case.config.selection.rollouts))
    for name, num in expected.items():
        if len(steps.get(name, {})) < num:
            return critical(
                f"{name} was recorded {len(steps.get(name, {}))} times; this configuration measures it {num} times.",
                path, case.train_again,
            )  # fmt: skip
    if not case.config.selection.rollouts:
        return warning(
            "no rollouts on the way: nothing but the loss tells how training went, and no checkpoint is the best.",
            case.folder / "config.yaml", case.train_again,
        )  # fmt: skip
    return ruled_out(f"All {trainer.steps} steps are on record, with every measurement.")


@CHECKS.add("best is not the best", stage="instrumentation", settle="compare with the records of its rollouts")
def best_is_best(case: RunCase) -> Result:
    """Is the checkpoint called best the one that succeeded most?"""
    path = case.folder / "checkpoints" / "best"
    successes = case.recorded.get("eval/success", {})
    if not successes:
        return untested("No rollouts chose a checkpoint.")
    case.require_training_data()  # of another run's checkpoint, these records say nothing
    step = case.policy.contract.step
    if find_checkpoint(case.folder).name != "best" or step not in successes:
        return critical(
            f"the policy in use is that of step {step}, which no rollout chose (they were at "
            f"{', '.join(map(str, successes))}).", path, case.train_again,
        )  # fmt: skip
    top = max(successes.values())
    if successes[step] < top - 1e-9:
        return critical(
            f"the checkpoint called best succeeded {100 * successes[step]:.0f} % of the time in its rollouts, another "
            f"{100 * top:.0f} %.", path, case.train_again,
        )  # fmt: skip
    return ruled_out(
        f"The best checkpoint (step {step}) had {100 * top:.0f} % success in its rollouts, the most of all."
    )
