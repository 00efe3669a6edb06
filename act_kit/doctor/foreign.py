"""The doctor of foreign policies: finds from behavior alone why a policy that is not a run of act_kit fails.

A policy is asked about observations of the scripted expert's episodes and rolled out from their initial states. It is
never trained, opened or replaced: the faults are those of the adapter between a policy and the simulator.
"""

from __future__ import annotations

from act_kit.doctor import foreign_actions, foreign_answers
from act_kit.doctor.finding import Checks, Finding, Result, critical, examine, rank, ruled_out, suspected
from act_kit.doctor.foreign_case import NUM_EPISODES, ForeignCase
from act_kit.eval.results import success_rate

CHECKS = Checks[ForeignCase](lambda case, name: case.name)
"""The last checks: that of crashes also reports errors that came up in the others."""

_FEW = 0.5
"""Success rate, from initial states from which the expert succeeds, below which success is low."""


@CHECKS.add("the policy crashes", "instrumentation", "act eval, and read the crashed episodes in episodes.csv")
def crashes(case: ForeignCase) -> Result:
    """Check that neither a rollout nor another question ends with an error of the policy."""
    crashed = [episode.crash for episode in case.as_shown if episode.crash]
    if crashed:
        message = f"{len(crashed)} of {NUM_EPISODES} episodes end with an error, for example: {crashed[0]}"
    elif case.failures:
        message = f"the policy does not answer every observation: {case.failures[0]}"
    else:
        return ruled_out(f"{NUM_EPISODES} episodes without an error.")
    return critical(message, fix=f"let {case.name} answer every observation")


@CHECKS.add("low success rate", "rollouts", "act eval, with --record-video")
def succeeds(case: ForeignCase) -> Result:
    """Compare the success rate with that of the expert, which solves all these episodes."""
    rate = success_rate(case.as_shown)
    where = f"from {NUM_EPISODES} initial states from which the expert succeeds, within {case.max_steps} steps"
    if rate.value >= _FEW:
        return ruled_out(f"Success {rate} {where}.")
    return suspected(
        f"success {rate} {where}.",
        fix=f"read the findings above; if there are none, {case.name} has not learned {case.task}",
    )


def examine_case(case: ForeignCase) -> list[Finding]:
    """Run every check of a foreign policy.

    Raises:
        ActKitError: The policy does not answer with actions.
    """
    assert case.chunks.size  # asked for first: its answers are those of a policy that has not acted yet
    modules = (foreign_answers.CHECKS, foreign_actions.CHECKS, foreign_answers.INPUTS, CHECKS)
    return sorted(examine(case, *modules), key=rank)
