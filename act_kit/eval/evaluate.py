"""Evaluating a policy: the same starts for it and for its controls, and everything needed to believe the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from act_kit.config import EvalConfig
from act_kit.errors import StartError
from act_kit.eval.actors import Actor, ExpertActor, NothingActor, PolicyActor, RandomActor
from act_kit.eval.evalset import EvalSet, check_disjoint, make_evalset
from act_kit.eval.rollout import Outcome, Progress, Roll
from act_kit.eval.statistics import Rate
from act_kit.policy.policy import Policy
from act_kit.sim.starts import Start
from act_kit.sim.tasks import get_task


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What is reported of one episode: how it went, and how far it was from what the policy had seen.

    Attributes:
        outcome: How it went.
        nearest_demonstration: Distance of its start to the nearest demonstrated one, in box widths, over the
            informative dimensions.
        largest_z: Largest normalised coordinate of any state the policy was asked about.
    """

    outcome: Outcome
    nearest_demonstration: float
    largest_z: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A policy's episodes and its controls.

    Attributes:
        evalset: The starts.
        episodes: The policy's, one per start.
        controls: Outcomes by name: ``expert``, ``nothing``, ``random`` on the first of the same starts, and the policy
            itself from ``demonstrated starts``.
    """

    evalset: EvalSet
    episodes: list[Episode]
    controls: dict[str, list[Outcome]]

    @property
    def outcomes(self) -> list[Outcome]:
        """The policy's outcomes."""
        return [episode.outcome for episode in self.episodes]

    @property
    def success(self) -> Rate:
        """Success once, the benchmark's definition."""
        return success_rate(self.outcomes)

    @property
    def success_at_end(self) -> Rate:
        """Success at the last step of the horizon."""
        return Rate(sum(outcome.success_at_end for outcome in self.outcomes), len(self.outcomes))

    def mean_distance(self, when: str) -> float:
        """Mean of the ``initial``, ``min`` or ``final`` distance over the episodes."""
        return float(np.mean([distance_at(outcome, when) for outcome in self.outcomes]))

    @property
    def reading(self) -> str:
        """What the controls say about the number, in a sentence; empty where they say nothing."""
        expert, shown = self.controls.get("expert"), self.controls.get("demonstrated starts")
        if expert and success_rate(expert).value < 0.8 and self.success.value < 0.8:
            return (
                f"The scripted expert itself succeeds only {success_rate(expert)} times from these starts: look at the "
                "task and its starts before the policy."
            )
        if shown and success_rate(shown).interval[0] > self.success.interval[1]:
            return (
                "It succeeds from the starts it was shown and fails from others: the demonstrations do not cover the "
                "starts it is evaluated from. Read the dataset's diversity report: act report DATASET"
            )
        return ""


def success_rate(outcomes: Sequence[Outcome]) -> Rate:
    """Return how many succeeded once."""
    return Rate(sum(outcome.success_once for outcome in outcomes), len(outcomes))


def distance_at(outcome: Outcome, when: str) -> float:
    """Return the ``initial``, ``min`` or ``final`` distance of an episode."""
    return float({"initial": outcome.distance[0], "min": outcome.distance.min(), "final": outcome.distance[-1]}[when])


def nearest_demonstrations(task: str, starts: Sequence[Start], demonstrated: np.ndarray) -> np.ndarray:
    """Return each start's distance to the nearest demonstrated one (N, D), in box widths; float64 (M,)."""
    spec = get_task(task)
    dims = spec.informative
    seen = demonstrated[:, dims] / spec.width[dims]
    return np.array([np.linalg.norm(seen - s.array[dims] / spec.width[dims], axis=1).min() for s in starts])


def evaluate(
    policy: Policy,
    evalset: EvalSet,
    config: EvalConfig,
    *,
    roll: Roll,
    on_progress: Callable[[str, Progress, int], None] = lambda who, progress, num: None,
) -> Evaluation:
    """Run ``policy`` from every start of ``evalset`` to the horizon, and the controls, by ``roll``.

    Raises:
        StartError: The set is of another task, or contains starts that were demonstrated in training.
    """
    contract = policy.contract
    if evalset.task != contract.task:
        raise StartError(
            f"The policy was trained on {contract.task}, the evaluation set is of {evalset.task}. Evaluate it on its "
            "own task: --starts fresh"
        )
    check_disjoint(evalset, contract.demonstrated_starts)

    def run(who: str, actor: Actor, starts: Sequence[Start], *, stop_at_success: bool) -> list[Outcome]:
        return roll(
            actor,
            starts,
            stop_at_success=stop_at_success,
            on_progress=lambda progress: on_progress(who, progress, len(starts)),
        )

    outcomes = run("policy", PolicyActor(policy), evalset.starts, stop_at_success=False)
    controls: dict[str, list[Outcome]] = {}
    some = evalset.starts[: config.control_episodes]
    for who, actor in (("expert", ExpertActor(contract.task)), ("nothing", NothingActor()), ("random", RandomActor())):
        if some:
            controls[who] = run(who, actor, some, stop_at_success=True)
    if config.demonstrated_episodes and evalset.kind != "dataset":
        shown = make_evalset(
            contract.task, "dataset", config.demonstrated_episodes, evalset.seed, contract.demonstrated_starts
        )
        who = "demonstrated starts"
        controls[who] = run(who, PolicyActor(policy), shown.starts, stop_at_success=True)
    nearest = nearest_demonstrations(contract.task, evalset.starts, np.array(contract.demonstrated_starts))
    episodes = [
        Episode(outcome=outcome, nearest_demonstration=float(near), largest_z=_largest_z(policy, outcome))
        for outcome, near in zip(outcomes, nearest, strict=True)
    ]
    return Evaluation(evalset=evalset, episodes=episodes, controls=controls)


def _largest_z(policy: Policy, outcome: Outcome) -> float:
    states = torch.as_tensor(outcome.query_states, dtype=torch.float32, device=policy.device)
    return float(policy.normaliser.largest_z(states).max())
