"""What a policy has learnt, and where it fails."""

from __future__ import annotations

import numpy as np
from scipy.stats import fisher_exact

from act_kit.diagnosis.case import RunCase
from act_kit.diagnosis.finding import Checks, Result, ruled_out, suspected, untested
from act_kit.diagnosis.generalisation import evenly, measure_loss
from act_kit.eval.evaluate import success_rate

CHECKS = Checks[RunCase]()

_HARDLY = 0.5
"""Of the loss of predicting nothing, from which a policy is said to have hardly learnt anything."""

_LIKELY = 0.01
"""p-value at which a measured difference is suspected to be more than chance."""


@CHECKS.add("hardly trained", stage="learning", settle="train longer, and compare the loss")
def under_trained(case: RunCase) -> Result:
    """Does the policy fit even what it was shown?"""
    if _succeeds(case):
        return ruled_out(f"It succeeds {success_rate(case.from_fresh)} times from fresh starts.")
    fit, baseline = _fit(case), _loss_of_nothing(case)
    says = f"L1 is {fit:.3f} on the very demonstrations it was trained on; a constant action has {baseline:.3f}"
    if fit > _HARDLY * baseline:
        return suspected(
            f"it has hardly learnt what it was shown: {says}.", case.folder / "metrics.jsonl",
            f"{case.train_again} trainer.steps={2 * case.config.trainer.steps}", severity="critical",
        )  # fmt: skip
    return ruled_out(f"It fits what it was shown: {says}.")


@CHECKS.add("learnt by heart", stage="learning", settle="roll out from demonstrated and from fresh starts")
def generalises(case: RunCase) -> Result:
    """Is the loss on fresh demonstrations what the loss on held-out ones promised?"""
    for dataset in case.datasets:
        if dataset.soundness.labels_are_wrong:
            return untested(f"The demonstrations of {dataset.path} are wrong: no loss on them tells what was learnt.")
    gap = case.gap
    if gap.is_alarming:
        data = " ".join(f"act report {dataset.path}" for dataset in case.datasets)
        return suspected(f"it has learnt its starts by heart: {gap}.", "fresh demonstrations of the doctor", data)
    return ruled_out(f"No alarming gap: {gap}.")


def _fit(case: RunCase) -> float:
    """Return the L1 on some of the episodes that it was trained on, in the mean over the datasets."""
    losses = [measure_loss(case.policy, store, evenly(case.split(store)[0], 10)).value for store in case.stores]
    return float(np.mean(losses))


def _loss_of_nothing(case: RunCase) -> float:
    """Return the L1 of predicting zeros, or the mean action, whichever is less."""
    actions = [store.steps("action") for store in case.stores]
    zeros = np.mean([np.abs(of_store).mean() for of_store in actions])
    means = np.mean([np.abs(of_store - of_store.mean(axis=0)).mean() for of_store in actions])
    return float(min(zeros, means))


@CHECKS.add("it fails", stage="rollouts", settle="act eval RUN --record-video")
def reading(case: RunCase) -> Result:
    """If it fails: where does it fail, and what does that say?"""
    fresh, shown = success_rate(case.from_fresh), success_rate(case.from_shown)
    says = f"success {fresh} from fresh starts and {shown} from demonstrated ones"
    if _succeeds(case):
        return ruled_out(f"It does not fail: {says}.")
    table = [[shown.successes, shown.num - shown.successes], [fresh.successes, fresh.num - fresh.successes]]
    depends_on_start = fisher_exact(table, alternative="greater").pvalue < _LIKELY
    surprised, held_out = case.gap.is_alarming, case.gap.held_out
    fit = _fit(case)
    more = f"act collect --task {case.policy.tasks[0]} --n {2 * case.stores[0].num_episodes}"
    if fit > _HARDLY * _loss_of_nothing(case):
        cause, mend = "it has hardly learnt what it was shown", case.train_again
    elif depends_on_start and surprised:
        cause, mend = "the demonstrations do not cover the starts", f"act report {case.datasets[0].path}"
    elif depends_on_start:
        cause = "it drifts from what was demonstrated, or the evaluation differs from the demonstrations"
        mend = f"{more} --noise 0.1"
    elif surprised:
        cause, mend = "it was trained too little, is too small, or on bad demonstrations", case.train_again
    elif held_out > 2 * fit:
        cause = f"it knows its training episodes by heart (L1 {fit:.3f}, on others {held_out:.3f}): too few of them"
        mend = more
    else:
        cause = (
            f"it predicts what is near to what was demonstrated (L1 {fit:.3f} on its training episodes), but not near "
            "enough, or it drifts, or its chunks are carried out wrongly (act eval RUN --sweep-execution)"
        )
        mend = f"{case.train_again} trainer.steps={2 * case.config.trainer.steps}"
    return suspected(
        f"{says}, expert {success_rate(case.expert)}: {cause}.", "rollouts of the doctor", mend, severity="critical"
    )


def _succeeds(case: RunCase) -> bool:
    """Tell whether the policy does nearly what the expert does, as far as so few episodes tell."""
    ours, experts = success_rate(case.from_fresh), success_rate(case.expert)
    return ours.interval[1] >= 0.9 * experts.value and ours.value >= 0.7 * experts.value
