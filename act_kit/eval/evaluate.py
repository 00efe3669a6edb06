"""Evaluation of a policy and of its baselines from the same initial states.

The baselines, the stages and the distances to the demonstrations show how far the success rate can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch

from act_kit.config import EvalConfig
from act_kit.errors import InitialStateError
from act_kit.eval.distance_to_demos import distances_to_nearest_demo
from act_kit.eval.failure_modes import FAILURE_MODES, FailureMode, failure_mode
from act_kit.eval.init_state_sets import InitialStateSet, check_disjoint, make_init_state_set
from act_kit.eval.stages import Stage, stage_counts
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.metadata import PolicyMetadata
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import Progress, RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.statistics import Rate

FAR_Z = 15.0
"""Number of standard deviations from the mean of the demonstrated states. Demonstrations themselves reach 2 to 5."""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """The result of one episode and its distance from the demonstrations.

    Attributes:
        outcome: Record of the episode.
        distance_to_nearest_demo: Distance of its initial state to the nearest demonstrated one, in box widths, over the
            informative dimensions; None if no demonstrated initial state is known.
        largest_z: Largest normalized coordinate of any state that the policy was queried with.
    """

    outcome: Episode
    distance_to_nearest_demo: float | None
    largest_z: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The episodes of a policy on one task, and those of its baselines.

    Attributes:
        init_state_set: Initial states.
        episodes: Results of the policy, one per initial state.
        baselines: Outcomes by name: ``expert``, ``nothing`` (zero actions) and ``random`` from the first of the same
            initial states, and the policy itself from ``demonstrated initial states``.
        engine: Name of the simulation engine.
    """

    init_state_set: InitialStateSet
    episodes: list[EpisodeResult]
    baselines: dict[str, list[Episode]]
    engine: str

    @property
    def outcomes(self) -> list[Episode]:
        """Outcomes of the policy."""
        return [episode.outcome for episode in self.episodes]

    @property
    def success(self) -> Rate:
        """Rate of episodes with success at any step, the benchmark's definition."""
        return success_rate(self.outcomes)

    @property
    def success_at_end(self) -> Rate:
        """Rate of episodes with success at the last step of the horizon."""
        return Rate(sum(outcome.success_at_end for outcome in self.outcomes), len(self.outcomes))

    def mean_distance(self, when: str) -> float:
        """Return the mean of the ``initial``, ``min`` or ``final`` distance over the episodes."""
        return float(np.mean([distance_at(outcome, when) for outcome in self.outcomes]))

    @property
    def closed_distance_fraction(self) -> float:
        """Fraction of the mean initial distance that is closed at the end of the episodes."""
        return 1 - self.mean_distance("final") / self.mean_distance("initial")

    @property
    def largest_z(self) -> float:
        """Largest normalized coordinate of any state that the policy was queried with."""
        return max(episode.largest_z for episode in self.episodes)

    @property
    def num_far(self) -> int:
        """Number of episodes with a state farther than ``FAR_Z`` from the demonstrated ones."""
        return sum(episode.largest_z > FAR_Z for episode in self.episodes)

    @property
    def far_text(self) -> str:
        """Text on the largest distance of a state from the demonstrated ones."""
        text = f"{self.largest_z:.1f} standard deviations"
        if not self.num_far:
            return text
        return (
            f"{text}; in {self.num_far} of {len(self.episodes)} episodes more than {FAR_Z:.0f}: states unlike any "
            "demonstration, where the actions of the policy are unreliable"
        )

    @property
    def clip_fraction(self) -> float:
        """Mean fraction of the commanded action values outside [-1, 1]."""
        return float(np.mean([outcome.clip_fraction for outcome in self.outcomes]))

    @property
    def crashes(self) -> list[int]:
        """Indices of the episodes in which the simulation failed."""
        return [i for i, outcome in enumerate(self.outcomes) if outcome.crash]

    @property
    def stage_counts(self) -> dict[Stage, int]:
        """Number of episodes that reached each stage of the task or a later one, the first stage first."""
        return stage_counts(self.init_state_set.task, self.outcomes)

    @property
    def failures(self) -> dict[FailureMode, int]:
        """Number of failures of each failure mode, the most frequent first."""
        failure_modes = list(map(failure_mode, self.outcomes))
        counts = {mode: failure_modes.count(mode) for mode in FAILURE_MODES if mode in failure_modes}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def interpretation(self) -> str:
        """Sentence on what the baselines imply for the success rate; empty if they imply nothing."""
        expert, demonstrated = self.baselines.get("expert"), self.baselines.get("demonstrated initial states")
        if expert and success_rate(expert).value < 0.8 and self.success.value < 0.8:
            return (
                f"The scripted expert itself succeeds only {success_rate(expert)} times from these initial states. "
                "Fix: check the task and its initial states before the policy."
            )
        if demonstrated and success_rate(demonstrated).interval[0] > self.success.interval[1]:
            if self.init_state_set.kind == "ood":
                return (
                    "The policy succeeds from demonstrated initial states and fails from these, which lie outside the "
                    "box of the initial-state distribution: it does not extrapolate. To measure generalization within "
                    "the box: --init-states test"
                )
            return (
                "The policy succeeds from demonstrated initial states and fails from others: the demonstrations do not "
                "cover the initial states of the evaluation. Fix: read the dataset's diversity report: act report "
                "DATASET"
            )
        return ""


def success_rate(outcomes: Sequence[Episode]) -> Rate:
    """Return the rate of episodes with success at any step."""
    return Rate(sum(outcome.success_once for outcome in outcomes), len(outcomes))


def distance_at(outcome: Episode, when: str) -> float:
    """Return the ``initial``, ``min`` or ``final`` distance of an episode."""
    return float(
        {"initial": outcome.distances[0], "min": outcome.distances.min(), "final": outcome.distances[-1]}[when]
    )


def evaluate(
    policy: Policy,
    init_state_set: InitialStateSet,
    config: EvalConfig,
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda agent_name, progress, num_episodes: None,
) -> Evaluation:
    """Evaluate ``policy`` and its baselines on one set of initial states; see :func:`evaluate_all`."""
    (evaluation,) = evaluate_all(policy, [init_state_set], config, roll=roll, on_progress=on_progress)
    return evaluation


def evaluate_all(
    policy: Policy,
    init_state_sets: Sequence[InitialStateSet],
    config: EvalConfig,
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda agent_name, progress, num_episodes: None,
) -> list[Evaluation]:
    """Evaluate ``policy`` and the baselines of ``config`` on sets of one task each, by ``roll``.

    The policy runs from every initial state to the horizon. ``on_progress`` receives the name of the agent, its
    progress, and the number of episodes.

    Raises:
        InitialStateError: The policy was not trained on the task of a set, or a set contains demonstrated initial
            states.
    """
    metadata = policy.metadata
    for init_state_set in init_state_sets:
        if init_state_set.task not in policy.tasks:
            raise InitialStateError(
                f"The policy was trained on {', '.join(policy.tasks)}; the evaluation set is of {init_state_set.task}. "
                "Fix: evaluate the policy on a task it was trained on: --init-states test"
            )
        check_disjoint(init_state_set, metadata.init_states_of(init_state_set.task))

    def run(
        name: str, agent: Agent, init_states: Sequence[Sequence[InitialState]], *, stop_at_success: bool = True
    ) -> list[list[Episode]]:
        """Roll out from the initial states of all sets in one batch; return the outcomes by set."""
        all_init_states = list(chain.from_iterable(init_states))
        if not all_init_states:
            return [[] for _ in init_states]
        outcomes = iter(
            roll(
                agent,
                all_init_states,
                stop_at_success=stop_at_success,
                on_progress=lambda progress: on_progress(name, progress, len(all_init_states)),
            )
        )
        return [list(islice(outcomes, len(states_of_set))) for states_of_set in init_states]

    outcomes = run(
        "policy",
        PolicyAgent(policy),
        [init_state_set.init_states for init_state_set in init_state_sets],
        stop_at_success=False,
    )
    baseline_states = [init_state_set.init_states[: config.baseline_episodes] for init_state_set in init_state_sets]
    demonstrated = [
        _demonstrated_states(init_state_set, metadata, config.demonstrated_episodes)
        for init_state_set in init_state_sets
    ]
    baselines = {
        "expert": run("expert", ExpertAgent(), baseline_states),
        "zero actions": run("zero actions", ZeroActionAgent(), baseline_states),
        "random": run("random", RandomAgent(), baseline_states),
        "demonstrated initial states": run("demonstrated initial states", PolicyAgent(policy), demonstrated),
    }
    evaluations: list[Evaluation] = []
    for i, init_state_set in enumerate(init_state_sets):
        evaluations.append(
            Evaluation(
                init_state_set=init_state_set,
                episodes=_episode_results(policy, init_state_set, outcomes[i]),
                baselines={name: by_set[i] for name, by_set in baselines.items() if by_set[i]},
                engine=config.sim.engine,
            )
        )
    return evaluations


def _demonstrated_states(
    init_state_set: InitialStateSet, metadata: PolicyMetadata, num: int
) -> tuple[InitialState, ...]:
    """Choose demonstrated initial states of the set's task; none if unknown or if the set already is of that kind."""
    known = metadata.init_states_of(init_state_set.task)
    if init_state_set.kind == "train" or not known:
        return ()
    return make_init_state_set(init_state_set.task, "train", num, init_state_set.seed, known).init_states


def _episode_results(
    policy: Policy, init_state_set: InitialStateSet, outcomes: Sequence[Episode]
) -> list[EpisodeResult]:
    """Measure the distance of each episode from the demonstrations."""
    known = policy.metadata.init_states_of(init_state_set.task)
    nearest: list[float] | list[None] = [None] * len(outcomes)
    if known:
        nearest = distances_to_nearest_demo(init_state_set.task, init_state_set.init_states, np.array(known)).tolist()
    return [
        EpisodeResult(outcome=outcome, distance_to_nearest_demo=near, largest_z=_largest_z(policy, outcome))
        for outcome, near in zip(outcomes, nearest, strict=True)
    ]


def _largest_z(policy: Policy, outcome: Episode) -> float:
    states = torch.as_tensor(outcome.query_states, dtype=torch.float32, device=policy.device)
    return float(policy.normalizer.largest_z(states).max())
