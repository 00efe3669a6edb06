"""Demonstrators: the agents of a collection, by name.

To add one, write an :class:`~act_kit.rollouts.agents.Agent` and name it in ``DEMONSTRATORS``.
"""

from __future__ import annotations

from collections.abc import Callable

from act_kit.collection.replay import ReplayAgent
from act_kit.config.collection import CollectConfig
from act_kit.errors import ConfigError, did_you_mean
from act_kit.rollouts.agents import Agent, ExpertAgent, NoisyAgent


def _make_dagger(config: CollectConfig) -> Agent:
    from act_kit.collection.dagger import DaggerAgent  # imports PyTorch, which takes a second

    return DaggerAgent(config)


DEMONSTRATORS: dict[str, Callable[[CollectConfig], Agent]] = {
    "scripted": lambda config: ExpertAgent(),
    "other-way": lambda config: ExpertAgent(other_way=True),
    "policy": _make_dagger,
    "replay": ReplayAgent,
}
"""Factories of the demonstrators, by the value of ``--demonstrator``."""


def make_demonstrator(config: CollectConfig) -> Agent:
    """Make the demonstrator that ``config`` names, with its noise.

    Raises:
        ConfigError: There is no such demonstrator, or the policy takes images.
        CheckpointError, DatasetError: Its run or dataset is missing, damaged or of another task.
    """
    name = config.demonstrator
    if name not in DEMONSTRATORS:
        choices = (*DEMONSTRATORS, "teleop")
        raise ConfigError(
            f"'{name}' is not a demonstrator: choose from: {', '.join(choices)}.{did_you_mean(name, choices)}"
        )
    agent = DEMONSTRATORS[name](config)
    return NoisyAgent(agent, config.action_noise, seed=config.seed) if config.action_noise else agent
