"""A policy with a correction that is zero: what fine-tuning begins with."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from act_kit.config.finetuning import FinetuneConfig
from act_kit.config.policy import TransformerConfig
from act_kit.errors import TrainingError
from act_kit.policies.heads.residual import Residual, ResidualConfig
from act_kit.policies.policy import Policy


def add_correction(base: Policy, config: FinetuneConfig) -> Policy:
    """Return a policy with a correction that is zero: it acts as ``base`` does.

    Raises:
        TrainingError: The policy averages chunks, its head is not one of the package, or an iteration has too few
            episodes for its tasks.
    """
    model = base.model.config
    if not isinstance(model, TransformerConfig):
        raise TrainingError(f"A policy of the model '{model.name}' cannot be fine-tuned: expected act, flow or mip.")
    if base.chunking.temporal_ensemble:
        raise TrainingError("A policy that averages overlapping chunks cannot be fine-tuned. Fix: train it without.")
    fewest = fewest_episodes(base, config)
    if 0 < config.episodes < fewest:
        raise TrainingError(
            f"episodes={config.episodes}: expected at least {fewest}, so that each of the {len(base.tasks)} tasks has "
            f"new initial states in every iteration. Fix: episodes={fewest}, or leave it out."
        )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        corrected = Residual(
            ResidualConfig(
                base=model,
                num_actions=base.chunking.n_action_steps,
                scale=config.scale,
                width=config.width,
                inputs=model.inputs,
                cameras=model.cameras,
                chunk_size=model.chunk_size,
            ),
            num_tasks=len(base.tasks),
        )
    corrected.base.load_state_dict(base.model.state_dict())
    return Policy(corrected, base.normalizer, replace(base.metadata, step=0), base.chunking)


def fewest_episodes(base: Policy, config: FinetuneConfig) -> int:
    """Return the number of episodes with as many new initial states as there are tasks."""
    return math.ceil(len(base.tasks) / (1 - config.failed_fraction))
