"""Evaluating a policy: the same starts for it and for its controls, and everything needed to believe the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch

from act_kit.config import EvalConfig
from act_kit.errors import InitialStateError
from act_kit.eval.distance_to_demos import distances_to_nearest_demo
from act_kit.eval.failure_modes import LABELS, Label, failure_mode
from act_kit.eval.init_state_sets import InitialStateSet, check_disjoint, make_init_state_set
from act_kit.eval.stages import Stage, stage_counts
from act_kit.policies.policy import Policy, PolicyMetadata
from act_kit.rollouts.agents import Agent, ExpertAgent, PolicyAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.rollout import Outcome, Progress, RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.statistics import Rate

FAR_Z = 15.0
"""Standard deviations from the mean of the demonstrated states; demonstrations themselves reach 2 to 5."""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What is reported of one episode: how it went, and how far it was from what the policy had seen.

    Attributes:
        outcome: How it went.
        distance_to_nearest_demo: Distance of its start to the nearest demonstrated one, in box widths, over the
            informative dimensions; None where no demonstrated start is known.
        largest_z: Largest normalised coordinate of any state the policy was asked about.
    """

    outcome: Outcome
    distance_to_nearest_demo: float | None
    largest_z: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A policy's episodes of one task, and its controls.

    Attributes:
        evalset: The starts.
        episodes: The policy's, one per start.
        controls: Outcomes by name: ``expert``, ``nothing``, ``random`` on the first of the same starts, and the policy
            itself from ``demonstrated starts``.
        engine: What simulated.
    """

    init_state_set: InitialStateSet
    episodes: list[EpisodeResult]
    baselines: dict[str, list[Outcome]]
    engine: str

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
    def closed_distance_fraction(self) -> float:
        """Which part of the initial distance was gone at the end, of the means."""
        return 1 - self.mean_distance("final") / self.mean_distance("initial")

    @property
    def largest_z(self) -> float:
        """Largest normalised coordinate of any state the policy was asked about."""
        return max(episode.largest_z for episode in self.episodes)

    @property
    def num_far(self) -> int:
        """Episodes with a state farther from the demonstrated ones than ``FAR_Z``."""
        return sum(episode.largest_z > FAR_Z for episode in self.episodes)

    @property
    def far_text(self) -> str:
        """How far from the demonstrated states the policy got, in words."""
        text = f"{self.largest_z:.1f} standard deviations"
        if not self.num_far:
            return text
        return (
            f"{text}; in {self.num_far} of {len(self.episodes)} episodes more than {FAR_Z:.0f}: states unlike any "
            "demonstration, where what the policy does means little"
        )

    @property
    def clip_fraction(self) -> float:
        """Mean fraction of the numbers it asked for that lay outside [-1, 1]."""
        return float(np.mean([outcome.clip_fraction for outcome in self.outcomes]))

    @property
    def crashes(self) -> list[int]:
        """The episodes that crashed."""
        return [i for i, outcome in enumerate(self.outcomes) if outcome.crash]

    @property
    def stage_counts(self) -> dict[Stage, int]:
        """How many episodes got as far as each stage of the task, the first stage first."""
        return stage_counts(self.init_state_set.task, self.outcomes)

    @property
    def failures(self) -> dict[Label, int]:
        """How many failures there are of each label, the most frequent first."""
        failure_modes = list(map(failure_mode, self.outcomes))
        counts = {what: failure_modes.count(what) for what in LABELS if what in failure_modes}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def interpretation(self) -> str:
        """What the controls say about the number, in a sentence; empty where they say nothing."""
        expert, shown = self.baselines.get("expert"), self.baselines.get("demonstrated starts")
        if expert and success_rate(expert).value < 0.8 and self.success.value < 0.8:
            return (
                f"The scripted expert itself succeeds only {success_rate(expert)} times from these starts: look at the "
                "task and its starts before the policy."
            )
        if shown and success_rate(shown).interval[0] > self.success.interval[1]:
            if self.init_state_set.kind == "ood":
                return (
                    "It succeeds from the starts it was shown and fails from these, which lie outside the box that "
                    "starts are drawn from: it does not extrapolate. Whether it generalises: --init-states test"
                )
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


def evaluate(
    policy: Policy,
    init_state_set: InitialStateSet,
    config: EvalConfig,
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda who, progress, num: None,
) -> Evaluation:
    """Run ``policy`` from every start of ``init_state_set`` to the horizon, and the controls; see :func:`evaluate_all`."""
    (evaluation,) = evaluate_all(policy, [init_state_set], config, roll=roll, on_progress=on_progress)
    return evaluation


def evaluate_all(
    policy: Policy,
    init_state_sets: Sequence[InitialStateSet],
    config: EvalConfig,
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda who, progress, num: None,
) -> list[Evaluation]:
    """Evaluate ``policy`` on sets of one task each, with ``config``'s controls of each, by ``roll``.

    ``on_progress`` is told who acts, how far that is, and of how many episodes.

    Raises:
        StartError: A set is of a task that the policy does not have, or contains starts that were demonstrated.
    """
    contract = policy.contract
    for init_state_set in init_state_sets:
        if init_state_set.task not in policy.tasks:
            raise InitialStateError(
                f"The policy was trained on {', '.join(policy.tasks)}; the evaluation set is of {init_state_set.task}. "
                "Evaluate it on what it was trained on: --init-states test"
            )
        check_disjoint(init_state_set, contract.init_states_of(init_state_set.task))

    def run(
        who: str, agent: Agent, init_states: Sequence[Sequence[InitialState]], *, stop_at_success: bool = True
    ) -> list[list[Outcome]]:
        """Roll out from the starts of all sets at once; return the outcomes by set."""
        of_all = list(chain.from_iterable(init_states))
        if not of_all:
            return [[] for _ in init_states]
        outcomes = iter(
            roll(
                agent,
                of_all,
                stop_at_success=stop_at_success,
                on_progress=lambda progress: on_progress(who, progress, len(of_all)),
            )
        )
        return [list(islice(outcomes, len(of_set))) for of_set in init_states]

    outcomes = run(
        "policy",
        PolicyAgent(policy),
        [init_state_set.init_states for init_state_set in init_state_sets],
        stop_at_success=False,
    )
    some = [init_state_set.init_states[: config.baseline_episodes] for init_state_set in init_state_sets]
    shown = [
        _demonstrated(init_state_set, contract, config.demonstrated_episodes) for init_state_set in init_state_sets
    ]
    baselines = {
        "expert": run("expert", ExpertAgent(), some),
        "nothing": run("nothing", ZeroActionAgent(), some),
        "random": run("random", RandomAgent(), some),
        "demonstrated starts": run("demonstrated starts", PolicyAgent(policy), shown),
    }
    return [
        Evaluation(
            init_state_set=init_state_set,
            episodes=_judge(policy, init_state_set, outcomes[i]),
            baselines={who: of_sets[i] for who, of_sets in baselines.items() if of_sets[i]},
            engine=config.sim.engine,
        )
        for i, init_state_set in enumerate(init_state_sets)
    ]


def _demonstrated(init_state_set: InitialStateSet, contract: PolicyMetadata, num: int) -> tuple[InitialState, ...]:
    """Choose demonstrated starts of the set's task as a control, if they are known and not evaluated already."""
    known = contract.init_states_of(init_state_set.task)
    if init_state_set.kind == "train" or not known:
        return ()
    return make_init_state_set(init_state_set.task, "train", num, init_state_set.seed, known).init_states


def _judge(policy: Policy, init_state_set: InitialStateSet, outcomes: Sequence[Outcome]) -> list[EpisodeResult]:
    """Say of each episode how far it was from what the policy had seen."""
    known = policy.contract.init_states_of(init_state_set.task)
    nearest: list[float] | list[None] = [None] * len(outcomes)
    if known:
        nearest = distances_to_nearest_demo(init_state_set.task, init_state_set.init_states, np.array(known)).tolist()
    return [
        EpisodeResult(outcome=outcome, distance_to_nearest_demo=near, largest_z=_largest_z(policy, outcome))
        for outcome, near in zip(outcomes, nearest, strict=True)
    ]


def _largest_z(policy: Policy, outcome: Outcome) -> float:
    states = torch.as_tensor(outcome.query_states, dtype=torch.float32, device=policy.device)
    return float(policy.normalizer.largest_z(states).max())
