"""The doctor of a fine-tuned run: checks that it kept its base policy, and that its updates were sound."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from act_kit.config.finetuning import FinetuneConfig
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, untested, warning
from act_kit.eval.results import success_rate
from act_kit.files import quoted
from act_kit.finetuning.run import load_run
from act_kit.metrics import series
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.heads.residual import Residual
from act_kit.policies.policy import Policy
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import sample_each

_LEAST_VALUE, _LARGEST_VALUE = -2.0, 3.0
"""Range of the values of a critic that has not diverged: returns lie in [0, 1], and rare states may be far off."""

_LARGEST_DIVERGENCE = 5.0
"""Divergence after the steps of an iteration, relative to the target, beyond which the policy jumped."""

_FEWEST_STEPS = 500
"""Number of gradient steps of the policy below which little can be expected: ten iterations of the default size."""


class FinetunedCase:
    """A run of ``act finetune``, with what the checks measure, computed when first used."""

    def __init__(self, folder: Path, num_workers: int) -> None:
        self.folder = folder
        self.num_workers = num_workers

    @cached_property
    def loaded(self) -> tuple[Path, FinetuneConfig]:
        """Path of the base policy, and the options."""
        return load_run(self.folder)

    @cached_property
    def policy(self) -> Policy:
        """The best checkpoint."""
        return Policy.load(self.folder)

    @cached_property
    def base(self) -> Policy:
        """The base policy."""
        return Policy.load(self.loaded[0])

    def records(self, name: str) -> dict[int, float]:
        """Return the recorded values of a metric of fine-tuning by step."""
        return {int(step): value for step, value in series(self.folder, f"finetune/{name}")}

    @cached_property
    def selected(self) -> list[Episode]:
        """Episodes of the best checkpoint from the selection initial states, to the horizon."""
        _, config = self.loaded
        states = sample_each(self.policy.tasks, config.select_episodes, seed=config.seed, stream="select")
        with RolloutPool(self.num_workers, engine=config.sim.engine) as roll:
            return roll(PolicyAgent(self.policy), states, stop_at_success=True)

    @property
    def again(self) -> str:
        """Command that fine-tunes again."""
        base, _ = self.loaded
        return f"act finetune {quoted(base)} --out {quoted(self.folder)}-2"


CHECKS: Checks[FinetunedCase] = Checks(lambda case, name: case.folder / name, lambda case: case.again)


@CHECKS.add(
    "normalizer not carried over", "inference", "compare both checkpoints", "checkpoints/best/model.safetensors"
)
def same_normalizer(case: FinetunedCase) -> Result:
    """Check that observations are normalized as the base policy was trained."""
    differing = _differing(case.policy.normalizer.state_dict(), case.base.normalizer.state_dict())
    if differing:
        return critical(
            f"the normalizer is not that of the base policy, {case.loaded[0]}: {differing}. The base was trained on "
            "other inputs than it gets."
        )
    return ruled_out("The normalizer is that of the base policy.")


@CHECKS.add("base policy changed", "inference", "compare both checkpoints", "checkpoints/best/model.safetensors")
def same_base(case: FinetunedCase) -> Result:
    """Check that every tensor of the base policy is in the fine-tuned one."""
    if not isinstance(case.policy.model, Residual):
        return untested("The whole policy was fine-tuned, with trains=policy.")
    own, base = case.policy.model.base.state_dict(), case.base.model.state_dict()
    differing = _differing(own, base)
    if differing:
        return critical(f"the frozen part is not the base policy, {case.loaded[0]}: {differing}.")
    return ruled_out(f"All {len(base)} tensors of the base policy are in the fine-tuned one.")


def _differing(own: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str:
    """Describe the tensors that differ; "" for none."""
    missing = sorted(own.keys() ^ other.keys())
    changed = [name for name in own.keys() & other.keys() if not torch.equal(own[name], other[name])]
    parts = [f"{len(missing)} tensors are missing, such as {missing[0]}"] if missing else []
    parts += [f"{len(changed)} of {len(own)} tensors differ, such as {min(changed)}"] if changed else []
    return "; ".join(parts)


@CHECKS.add("critic not warmed up", "learning", "plot finetune/explained_variance", "metrics.jsonl")
def warmed_up(case: FinetunedCase) -> Result:
    """Check that the policy rested until the critic explained the returns."""
    explained, changes = case.records("explained_variance"), case.records("policy_steps")
    began = [step for step, num in sorted(changes.items()) if num > 0]
    if not began:
        return untested("The policy was never changed.")
    before = [value for step, value in explained.items() if step < began[0]]
    wanted = case.loaded[1].warmup_variance
    if not before:
        return critical(
            f"the policy was changed from the first iteration on, by a critic that explained {explained[began[0]]:.2f} "
            "of the variance of the returns: a random critic ruins a good policy."
        )
    if max(before) < wanted:
        return warning(
            f"the policy was changed when the critic explained {max(before):.2f} of the variance of the returns: "
            f"expected {wanted:g}."
        )
    return ruled_out(f"The critic explained {before[-1]:.2f} of the variance before the policy was changed.")


@CHECKS.add("value scale exploding", "learning", "plot finetune/value_low and finetune/value_high", "metrics.jsonl")
def sound_values(case: FinetunedCase) -> Result:
    """Check that the values lie where returns can lie."""
    low, high = case.records("value_low"), case.records("value_high")
    if not low:
        return untested("No values were recorded.")
    worst_low, worst_high = min(low.values()), max(high.values())
    if worst_low < _LEAST_VALUE or worst_high > _LARGEST_VALUE:
        return critical(
            f"values reach {worst_low:.2g} to {worst_high:.2g}, but returns lie in [0, 1]: the critic diverged."
        )
    return ruled_out(f"Values lie in {worst_low:.2f} to {worst_high:.2f}, returns in 0 to 1.")


@CHECKS.add("divergence out of bounds", "learning", "plot finetune/divergence", "metrics.jsonl")
def sound_steps(case: FinetunedCase) -> Result:
    """Check that no iteration moved the policy far from that of its rollouts."""
    records, target = case.records("divergence"), case.loaded[1].ppo.target_divergence
    if not records:
        return untested("The policy was never changed.")
    step = max(records, key=lambda each: records[each])
    if records[step] > _LARGEST_DIVERGENCE * target:
        return critical(
            f"the policy moved by a divergence of {records[step]:.2g} up to step {step}; the target is {target:g}.",
            fix=f"{case.again} ppo.lr={case.loaded[1].learning_rate / 3:.1g}",
        )
    return ruled_out(f"The divergence of an iteration is at most {records[step]:.2g} (target {target:g}).")


@CHECKS.add("too few updates", "learning", "count finetune/policy_steps", "metrics.jsonl")
def enough_updates(case: FinetunedCase) -> Result:
    """Check that the policy took enough gradient steps to change."""
    records = case.records("policy_steps")
    total = sum(records.values())
    if total < _FEWEST_STEPS:
        _, config = case.loaded
        longer = [f"--steps {4 * config.steps}"] if config.steps else []
        longer += [f"--minutes {4 * config.budget_minutes:g}"] if config.budget_minutes else []
        longer.append(f"patience={4 * config.patience}")
        return warning(
            f"the policy took {total:.0f} gradient steps in {len(records)} iterations: expected {_FEWEST_STEPS} or "
            "more.",
            fix=f"act finetune --out {quoted(case.folder)} --resume {' '.join(longer)}",
        )
    return ruled_out(f"{total:.0f} gradient steps of the policy in {len(records)} iterations.")


@CHECKS.add("success not reproduced", "rollouts", "roll out from the selection initial states", "metrics.jsonl")
def reproduced(case: FinetunedCase) -> Result:
    """Check that the recorded success of the best checkpoint is that of all its episodes, also of the long ones."""
    recorded = {int(step): value for step, value in series(case.folder, "eval/success")}
    step = case.policy.metadata.step
    if step not in recorded:
        return untested(f"eval/success was not recorded at step {step}.")
    rate = success_rate(case.selected)
    if not np.isclose(rate.value, recorded[step], atol=1e-3):
        return critical(
            f"the best checkpoint, of step {step}, has success {rate} from the selection initial states; recorded is "
            f"{recorded[step]:.3f}. Were episodes left out that did not end early, or was the success of a model read?"
        )
    return ruled_out(f"The success of the best checkpoint is reproduced: {rate}.")
