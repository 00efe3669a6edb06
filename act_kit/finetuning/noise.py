"""The noise that fine-tuning begins with: as much as the base policy bears.

With more noise an iteration teaches more, until the noise itself makes episodes fail. How much that is differs by task
and by policy, so it is measured.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from act_kit.config.finetuning import FinetuneConfig
from act_kit.finetuning.actors import make_actor
from act_kit.finetuning.curriculum import choose_horizon
from act_kit.finetuning.exploration import ExploringAgent
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.recorder import EpisodeRules
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import sample_each
from act_kit.sim.tasks import ACTION_DIM

_SIGMAS = (0.05, 0.1, 0.2, 0.3)
"""Standard deviations that are tried, in action units."""

_LARGEST_LOSS = 0.05
"""Fraction of the episodes that may fail because of the noise."""

_NUM_EPISODES = 100
"""Number of episodes with each standard deviation, over all tasks."""


def choose_noise(base: Policy, config: FinetuneConfig, *, roll: RolloutFunction) -> tuple[FinetuneConfig, str]:
    """Return the options with the largest noise at which ``base`` succeeds nearly as often as without, and why.

    The noise grows, within the range in which it is learned, until more than 5 % of the episodes fail because of it.
    The smallest is chosen in any case.
    """
    ppo = config.ppo
    sigmas = [sigma for sigma in _SIGMAS if ppo.sigma_min <= sigma <= ppo.sigma_max]
    sigmas = sigmas or [min(max(ppo.initial_sigma, ppo.sigma_min), ppo.sigma_max)]
    num = math.ceil(_NUM_EPISODES / len(base.tasks))
    states = sample_each(base.tasks, num, seed=config.seed, stream="finetune")
    episodes = roll(PolicyAgent(base), states, stop_at_success=True)
    rules = EpisodeRules(horizon=config.horizon or choose_horizon(episodes))
    without = sum(episode.success_once for episode in episodes)
    chosen, texts = sigmas[0], [f"{without} without noise"]
    actor = make_actor(base, config)
    for sigma in sigmas if without else []:
        agent = ExploringAgent(actor, torch.full((ACTION_DIM,), sigma), seeds=(config.seed, 0))
        episodes = roll(agent, states, rules=rules, stop_at_success=True)
        successes = sum(episode.success_once for episode in episodes)
        texts.append(f"{successes} with {sigma:g}")
        if successes < without - _LARGEST_LOSS * len(states):
            break
        chosen = sigma
    reason = f"Noise: {chosen:g} action units. Successes of {len(states)} episodes: {', '.join(texts)}."
    return replace(config, ppo=replace(ppo, sigma=chosen)), reason
