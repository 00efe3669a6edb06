"""The card of an evaluation: what is needed to repeat or dispute its success rate, in one file."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from act_kit.eval.evaluate import ActionFunction, as_agent
from act_kit.eval.results import Evaluation
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode

_NUM_WARM_UP = 5
_MAX_QUERIES = 100
_MAX_S = 1.0
"""Bounds of a measurement of the latency; five queries at least."""


def make_card(evaluation: Evaluation, agent: Policy | Agent | ActionFunction) -> dict[str, Any]:
    """Return the card of an evaluation of one task that was just run, as plain values.

    The latency is that of the task. A server's was measured in the rollouts, where it answers as many environments at
    once as ``num_asked`` says. That of a policy is measured now, for one environment, as a robot asks it: a rollout
    predicts for many environments together. That of another agent is unknown.
    """
    latencies_s, num_asked = as_agent(agent).latencies_s.get(evaluation.task, ()), as_agent(agent).num_asked
    if isinstance(agent, Policy):
        latencies_s, num_asked = measure_latencies(agent, evaluation.outcomes[0]), 1
    provenance, init_state_set = evaluation.provenance, evaluation.init_state_set
    run = {"kind": "run", "name": provenance["training"]["checkpoint"], "weights": provenance["weights"]}
    lengths = [np.diff(outcome.query_steps, append=len(outcome)).max(initial=0) for outcome in evaluation.outcomes]
    latency = None
    if latencies_s:
        median, late = np.percentile(latencies_s, [50, 95])
        latency = {
            "num_queries": len(latencies_s),
            "num_asked": num_asked,
            "median_s": float(median),
            "percentile_95_s": float(late),
        }
    return {
        "task": evaluation.task,
        "success_once": evaluation.success.to_dict(),
        "crashes": len(evaluation.crashes),
        "policy": provenance.get("agent", run),
        "chunking": provenance["chunking"],
        "actions_per_query": int(max(lengths, default=0)),
        "latency": latency,
        "delay": provenance["delay"],
        "protocol": provenance["protocol"],
        "success_rule": provenance["success_rule"],
        "init_state_set": {
            "kind": init_state_set.kind,
            "seed": init_state_set.seed,
            "num": len(init_state_set.init_states),
            "hash": init_state_set.hash,
        },
        "engine": provenance["engine"],
        "versions": provenance["versions"],
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "device": provenance["device"],
        },
    }


def measure_latencies(policy: Policy, outcome: Episode) -> Sequence[float]:
    """Return the seconds from an observation of one environment to its actions, for up to 100 states of an episode.

    Images are black: their content does not matter.
    """
    agent, rows = PolicyAgent(policy), np.zeros(1, dtype=np.int64)
    agent.begin(0, outcome.init_state, 0)
    images = None
    if policy.views:
        settings = policy.views.settings
        shape = (1, len(policy.views.cameras), settings.height_px, settings.width_px, 3)
        images = np.zeros(shape, dtype=np.uint8)
    seconds: list[float] = []
    for state in outcome.states[: _NUM_WARM_UP + _MAX_QUERIES]:
        asked_at = time.perf_counter()
        agent.plan(state[None], rows, images)
        seconds.append(time.perf_counter() - asked_at)
        if sum(seconds) > _MAX_S and len(seconds) >= 2 * _NUM_WARM_UP:
            break
    return seconds[_NUM_WARM_UP:] or seconds
