"""The noise that fine-tuning begins with is as much as the base policy bears."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import act_kit
from act_kit.config.finetuning import FinetuneConfig, PPOConfig
from act_kit.finetuning.exploration import ExploringAgent
from act_kit.finetuning.noise import choose_noise
from act_kit.finetuning.run import load_run
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.sim.initial_states import InitialState


@pytest.mark.parametrize(
    ("successes", "chosen", "reason"),
    [
        ({0: 87, 0.05: 88, 0.1: 88, 0.2: 90, 0.3: 93}, 0.3, "87 without noise, 88 with 0.05, .*, 93 with 0.3"),
        ({0: 94, 0.05: 95, 0.1: 89, 0.2: 71}, 0.1, "94 without noise, 95 with 0.05, 89 with 0.1, 71 with 0.2"),
        ({0: 94, 0.05: 60}, 0.05, "60 with 0.05"),
        ({0: 0}, 0.05, "Successes of 100 episodes: 0 without noise"),
    ],
)
def test_the_largest_noise_that_costs_few_successes_is_chosen(
    successes: dict[float, int], chosen: float, reason: str, tiny_run: Path
) -> None:
    def roll(agent: Agent, states: list[InitialState], **options: Any) -> list[SimpleNamespace]:
        sigma = round(float(agent._sigma[0]), 3) if isinstance(agent, ExploringAgent) else 0
        succeeded = [index < successes[sigma] for index in range(len(states))]
        return [
            SimpleNamespace(success_once=success, success_step=50 if success else None, init_state=state)
            for state, success in zip(states, succeeded, strict=True)
        ]

    config, text = choose_noise(Policy.load(tiny_run), FinetuneConfig(), roll=roll)  # type: ignore[arg-type]
    assert config.ppo.sigma == chosen
    assert config.largest_correction == pytest.approx(2 * chosen)
    assert re.search(reason, text)
    for low, high, expected in ((0.01, 0.02, 0.02), (0.4, 0.9, 0.4)):
        outside = FinetuneConfig(ppo=PPOConfig(sigma_min=low, sigma_max=high))
        successes[expected] = 0
        assert choose_noise(Policy.load(tiny_run), outside, roll=roll)[0].ppo.sigma == expected  # type: ignore[arg-type]


def test_a_run_keeps_the_noise_that_it_measured(tiny_run: Path, tmp_path: Path) -> None:
    options = ["episodes=1", "select_episodes=1", "select_every=1", "width=8", "horizon=20"]
    run = tmp_path / "run"
    act_kit.finetune(tiny_run, run, overrides=options, steps=1, workers=1)
    _, config = load_run(run)
    assert config.ppo.sigma > 0
    act_kit.finetune(out=run, overrides=["ppo.sigma=0"], steps=2, resume=True, workers=1)
    assert load_run(run)[1].ppo.sigma == config.ppo.sigma
