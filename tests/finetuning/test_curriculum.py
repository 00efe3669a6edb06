"""The curriculum of fine-tuning: initial states from the core outwards, and more of the tasks that fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.config.finetuning import FinetuneConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError
from act_kit.finetuning.curriculum import allot, choose_horizon, core_fraction, draw_from_core
from act_kit.finetuning.finetuner import Finetuner
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import ExpertAgent, ZeroActionAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, sample_each, stack
from act_kit.sim.tasks import TASKS, get_task
from act_kit.training.trainer import Trainer
from tests.conftest import tiny_config


def largest_offset(states: list[InitialState], center: np.ndarray) -> float:
    spec = get_task(states[0].task)
    offsets = np.abs(stack(states) - center)[:, spec.informative] / spec.width[spec.informative]
    return float(offsets.max())


def test_the_core_grows_from_the_demonstrated_center_to_all_initial_states() -> None:
    config = FinetuneConfig(core_fraction=0.2, widen_iterations=4)
    fractions = [core_fraction(config, iteration) for iteration in range(6)]
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    demonstrated = [state.rand_vec for state in InitialStateDistribution("push-v3").sample(9, seed=5, stream="collect")]
    center, offsets = np.mean(demonstrated, axis=0), list[float]()
    for fraction in fractions:
        states = draw_from_core("push-v3", 40, fraction, demonstrated, seed=3)
        assert len({state.rand_vec for state in states}) == 40
        for state in states:
            get_task("push-v3").check(state.array)
        offsets.append(largest_offset(states, center))
    assert offsets[0] < 0.7 * offsets[-1]
    assert offsets[0] < offsets[2] < offsets[4] == offsets[5]
    assert states == InitialStateDistribution("push-v3").sample(40, seed=3, stream="finetune"), "all: the plain draw"


def test_the_horizon_leaves_the_successes_their_time_and_the_failures_little(tiny_run: Path, tmp_path: Path) -> None:
    states = sample_each(["reach-v3", "push-v3"], 10, seed=0, stream="select")
    with RolloutPool(1) as roll:
        episodes = roll(ExpertAgent(), states, stop_at_success=True)
        failures = roll(ZeroActionAgent(), states[10:])
        steps = [episode.success_step + 1 for episode in episodes if episode.success_step is not None]
        assert len(steps) == 20
        slowest = max(np.quantile(steps[:10], 0.9), np.quantile(steps[10:], 0.9))
        assert choose_horizon([*episodes, *failures]) == pytest.approx(2 * slowest, abs=0.5)
        assert choose_horizon(failures) == 500
        config = FinetuneConfig(episodes=3, select_episodes=2, select_every=1, steps=1, width=32, horizon=7)
        lengths: list[tuple[int, int]] = []

        def recorded(*args: Any, **options: Any) -> list[Episode]:
            rolled = roll(*args, **options)
            lengths.append((len(rolled), max(map(len, rolled))))
            return rolled

        (tmp_path / "run").mkdir()
        Finetuner(config, Policy.load(tiny_run), tmp_path / "run", roll=recorded).finetune()
    (num, base), (num_training, training), (_, selected) = lengths
    assert (num, num_training) == (2, 3)
    assert training <= 7 < min(base, selected), "evaluations have the benchmark's horizon"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_core(task: str) -> None:
    assert len(draw_from_core(task, 5, 0.3, [], seed=0)) == 5
    assert draw_from_core(task, 0, 0.3, [], seed=0) == []


def test_episodes_are_divided_by_the_failure_rates() -> None:
    assert allot(10, np.array([0.1, 0.9]), 0.0) == [5, 5]
    assert allot(10, np.array([0.1, 0.9]), 1.0) == [1, 9]
    assert allot(10, np.array([0.0, 0.0]), 1.0) == [5, 5]
    numbers = allot(101, np.array([0.0, 0.5, 0.5]), 0.4)
    assert sum(numbers) == 101
    assert numbers[0] == pytest.approx(0.2 * 101, abs=1)


def test_a_task_that_fails_gets_more_episodes(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    Trainer(tiny_config(), [reach_store, push_store], tmp_path / "base", evaluator=None).train()
    config = FinetuneConfig(episodes=20, select_episodes=4, steps=100, width=32, failing_tasks=1.0)
    drawn: list[Counter[str]] = []
    (tmp_path / "run").mkdir()
    with RolloutPool(1) as pool:

        def roll(agent: object, states: list[InitialState], **options: object) -> object:
            drawn.append(Counter(state.task for state in states))
            return pool(agent, states, **options)  # type: ignore[arg-type]

        finetuner = Finetuner(config, Policy.load(tmp_path / "base"), tmp_path / "run", roll=roll)  # type: ignore[arg-type]
        finetuner.finetune()
    base, first = drawn[:2]
    assert base == {"reach-v3": 4, "push-v3": 4}
    assert first.total() == 20
    assert first["push-v3"] > first["reach-v3"], "the policy, barely trained, reaches some goals and pushes nothing"


def test_a_core_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="core_fraction"):
        FinetuneConfig(core_fraction=0.0)
