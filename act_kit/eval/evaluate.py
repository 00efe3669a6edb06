"""Evaluation of a policy, or of any other agent, and of baselines from the same initial states.

The baselines, the stages and the distances to the demonstrations show how far the success rate can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from act_kit.config.evaluation import EvalConfig, ProtocolConfig
from act_kit.errors import InitialStateError
from act_kit.eval.distance_to_demos import distances_to_nearest_demo
from act_kit.eval.init_state_sets import InitialStateSet, check_disjoint, make_init_state_set
from act_kit.eval.protocols import protocol_provenance
from act_kit.eval.results import EpisodeResult, Evaluation, success_rate
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent, delayed
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import EpisodeRules
from act_kit.rollouts.rollout import Progress, RolloutFunction
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import get_task
from act_kit.training.run import config_of
from act_kit.versions import versions

ActionFunction = Callable[[np.ndarray], np.ndarray]
"""Function from states (B, 39) of environments to their actions (B, 4), or to their next N actions (B, N, 4)."""

ProgressFunction = Callable[[str, Progress, int], None]
"""Function that receives the name of an agent, its progress, and its number of episodes."""


class FunctionAgent(Agent):
    """Agent that calls an :data:`ActionFunction`."""

    def __init__(self, function: ActionFunction) -> None:
        self._function = function

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the function's actions as chunks (B, N, 4)."""
        actions = np.asarray(self._function(states))
        return actions[:, None] if actions.ndim == 2 else actions


def evaluate_all(
    agent: Policy | Agent | ActionFunction,
    init_state_sets: Sequence[InitialStateSet],
    config: EvalConfig,
    *,
    roll: RolloutFunction,
    on_progress: ProgressFunction = lambda agent_name, progress, num_episodes: None,
) -> list[Evaluation]:
    """Evaluate an agent and the baselines of ``config`` on sets of one task each, by ``roll``.

    The agent is a policy, an object with the protocol :class:`~act_kit.rollouts.agents.Agent`, or a function from
    states to actions. It runs from every initial state by the rules of the protocol. Only a policy knows its
    demonstrations: for another agent, the distances to them and the baseline from demonstrated initial states are
    missing.

    Raises:
        InitialStateError: The policy was not trained on the task of a set, or a set contains demonstrated initial
            states.
    """
    policy = agent if isinstance(agent, Policy) else None
    demonstrated: list[list[list[float]]] = []
    all_states: list[Sequence[InitialState]] = []
    first: list[Sequence[InitialState]] = []
    chosen: list[Sequence[InitialState]] = []
    for init_state_set in init_state_sets:
        task, seed = init_state_set.task, init_state_set.seed
        known = policy.metadata.init_states_of(task) if policy else []
        if policy and init_state_set.task not in policy.tasks:
            raise InitialStateError(
                f"The policy was trained on {', '.join(policy.tasks)}; the evaluation set is of {init_state_set.task}. "
                "Fix: evaluate the policy on a task it was trained on: --init-states test"
            )
        check_disjoint(init_state_set, known)
        demonstrated.append(known)
        all_states.append(init_state_set.init_states)
        first.append(init_state_set.init_states[: config.baseline_episodes])
        is_unknown = init_state_set.kind == "train" or not known
        num = config.demonstrated_episodes
        chosen.append(() if is_unknown else make_init_state_set(task, "train", num, seed, known).init_states)
    judged, rules = as_agent(agent), episode_rules(config.protocol)
    provenance = _provenance(policy, judged, config)
    outcomes = roll_sets(
        roll, "policy", delayed(judged, config.delay), all_states, on_progress, rules=rules, stop_at_success=False
    )
    runs: dict[str, tuple[Agent, list[Sequence[InitialState]]]] = {
        "expert": (ExpertAgent(), first),
        "zero actions": (ZeroActionAgent(), first),
        "random": (RandomAgent(), first),
        "demonstrated initial states": (delayed(as_agent(agent), config.delay), chosen),
    }
    baselines = {name: roll_sets(roll, name, *run, on_progress, rules=rules) for name, run in runs.items()}
    evaluations: list[Evaluation] = []
    for i, init_state_set in enumerate(init_state_sets):
        task_spec = get_task(init_state_set.task)
        known_states = np.array(demonstrated[i]).reshape(-1, len(task_spec.low))
        evaluations.append(
            Evaluation(
                init_state_set=init_state_set,
                episodes=_episode_results(policy, init_state_set, known_states, outcomes[i]),
                baselines={name: success_rate(by_set[i]) for name, by_set in baselines.items() if by_set[i]},
                demonstrated=known_states,
                provenance={
                    "success_rule": task_spec.success_rule,
                    "engine": config.sim.engine,
                    "dataset": training_data(policy, task_spec.name),
                    **provenance,
                },
                outcomes=outcomes[i],
            )
        )
    return evaluations


def episode_rules(protocol: ProtocolConfig) -> EpisodeRules:
    """Return how the episodes of a protocol begin and end."""
    return EpisodeRules(
        horizon=protocol.horizon, settle_steps=protocol.settle_steps, ends_at_success=protocol.ends_at_success
    )


def roll_sets(
    roll: RolloutFunction,
    name: str,
    agent: Agent,
    init_states: Sequence[Sequence[InitialState]],
    on_progress: ProgressFunction,
    *,
    rules: EpisodeRules,
    stop_at_success: bool = True,
) -> list[list[Episode]]:
    """Roll out from the initial states of all sets in one batch; return the episodes by set."""
    batch = list(chain.from_iterable(init_states))

    def show(progress: Progress) -> None:
        on_progress(name, progress, len(batch))

    episodes: Iterator[Episode] = iter(())
    if batch:
        episodes = iter(roll(agent, batch, rules=rules, stop_at_success=stop_at_success, on_progress=show))
    return [list(islice(episodes, len(states_of_set))) for states_of_set in init_states]


def as_agent(agent: Policy | Agent | ActionFunction) -> Agent:
    """Return the agent that rolls out a policy or a function; another agent is returned as it is."""
    if isinstance(agent, Policy):
        return PolicyAgent(agent)
    return FunctionAgent(agent) if callable(agent) else agent


def _episode_results(
    policy: Policy | None, init_state_set: InitialStateSet, demonstrated: np.ndarray, outcomes: Sequence[Episode]
) -> list[EpisodeResult]:
    """Measure the distance of each episode from the demonstrations."""
    nearest: list[float | None] = [None] * len(outcomes)
    if len(demonstrated):
        nearest = distances_to_nearest_demo(init_state_set.task, init_state_set.init_states, demonstrated).tolist()
    episodes: list[EpisodeResult] = []
    for outcome, distance in zip(outcomes, nearest, strict=True):
        largest_z = None
        if policy:
            states = torch.as_tensor(outcome.query_states, dtype=torch.float32, device=policy.device)
            largest_z = float(policy.normalizer.largest_z(states).max())
        result = EpisodeResult.of(outcome, distance_to_nearest_demo=distance, largest_z=largest_z)
        if policy and policy.recognizes_task:
            probabilities = policy.recognize_task(outcome.query_states[:1])[0]
            result = replace(result, recognized_task=policy.tasks[int(probabilities.argmax())])
        episodes.append(result)
    return episodes


def training_data(policy: Policy | None, task: str) -> dict[str, str]:
    """Return the fingerprints and the commands of the datasets of one task."""
    fingerprints: list[str] = []
    commands: list[str] = []
    for data in policy.metadata.datasets if policy else ():
        if data.task == task:
            fingerprints.append(data.fingerprint)
            commands.append(data.command)
    return {"fingerprint": "; ".join(fingerprints), "command": "; ".join(commands)}


def _provenance(policy: Policy | None, agent: Agent, config: EvalConfig) -> dict[str, Any]:
    """Return protocol, versions, chunking and training as plain values; None where there is no policy."""
    n_action_steps = policy.chunking.n_action_steps if policy else (agent.provenance or {}).get("n_action_steps")
    folder = policy.folder if policy else None
    metadata = policy.metadata if policy else None
    data: list[dict[str, str]] = []
    for each in metadata.datasets if metadata else ():
        data.append({"task": each.task, "fingerprint": each.fingerprint, "command": each.command})
    return {
        **({"agent": agent.provenance} if agent.provenance else {}),
        "protocol": protocol_provenance(config, n_action_steps=n_action_steps),
        "delay": config.delay,
        "weights": policy and policy.weights_hash,
        "horizon": config.protocol.horizon,
        "chunking": policy and asdict(policy.chunking),
        "policy_step": metadata and metadata.step,
        "versions": versions(),
        "device": policy and policy.device.type,
        "training": {
            "checkpoint": folder and str(folder),
            "config": folder and config_of(folder),
            "data": data,
            "versions": metadata and metadata.versions,
            "views": metadata and metadata.views and asdict(metadata.views),
            "gl_renderer": metadata and metadata.gl_renderer,
        },
    }
