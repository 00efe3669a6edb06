"""Fine-tuning in the simulator: begins as the base policy, improves it, resumes, and gives an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import act_kit
from act_kit.config.finetuning import FinetuneConfig, PPOConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, ConfigError, TrainingError
from act_kit.finetuning.actors import Actor, Correction, WholePolicy, add_correction, make_actor
from act_kit.finetuning.advantages import make_decisions
from act_kit.finetuning.exploration import Choices, Experience, ExploringAgent, gather_experience
from act_kit.finetuning.finetuner import Finetuner
from act_kit.finetuning.ppo import PPO
from act_kit.metrics import series
from act_kit.overrides import compose
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.heads.residual import Residual
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.training.trainer import Trainer

SMALL = ("ppo.sigma=0.1", "episodes=6", "select_episodes=4", "select_every=2", "width=32", "ppo.minibatch=200")


def corrected(run: Path) -> tuple[Policy, Residual]:
    policy = add_correction(Policy.load(run), FinetuneConfig(width=32))
    assert isinstance(policy.model, Residual)
    return policy, policy.model


def last_layer(model: Residual) -> torch.nn.Linear:
    layer = model.correction[-1]
    assert isinstance(layer, torch.nn.Linear)
    return layer


def experience_of(actor: Actor, ppo: PPO, num: int = 6) -> Experience:
    states = InitialStateDistribution("reach-v3").sample(num, seed=0, stream="finetune")
    agent = ExploringAgent(actor, ppo.sigma, seeds=(0, 0))
    with RolloutPool(1) as roll:
        return gather_experience(roll(agent, states, stop_at_success=True), gamma=0.999, horizon=500)


def test_it_begins_as_the_base_policy(tiny_run: Path, reach_store: EpisodeStore) -> None:
    base, (policy, model) = Policy.load(tiny_run), corrected(tiny_run)
    states = reach_store.steps("state")[:40]
    assert np.array_equal(policy.predict(states), base.predict(states))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("correction.")
    }
    with torch.no_grad():
        last_layer(model).bias.add_(100.0)
    difference = policy.predict(states) - base.predict(states)
    num = model.config.num_actions
    assert difference[:, :num] == pytest.approx(0.2, abs=1e-5), "the largest correction"
    assert not difference[:, num:].any()


def test_the_recorded_decisions_are_those_of_the_rollout(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(), Correction(policy), lr=3e-4, seed=0)
    first, again = experience_of(Correction(policy), ppo), experience_of(Correction(policy), ppo)
    assert torch.equal(first.actions_QEA, again.actions_QEA), "the noise is seeded"
    deviation = (first.actions_QEA - model.correct(first.inputs_QI)).std().detach()
    assert float(deviation) == pytest.approx(0.1, rel=0.1)
    assert first.time_left_Q[0] == 1
    assert len(first.num_executed_Q) == sum(len(each.rewards) for each in first.decisions)
    likelihood = ppo.log_likelihood(model.correct(first.inputs_QI), first.actions_QEA, first.num_executed_Q)
    normal = torch.distributions.Normal(model.correct(first.inputs_QI), ppo.sigma)
    executed = torch.arange(model.config.num_actions) < first.num_executed_Q[:, None]
    expected = (normal.log_prob(first.actions_QEA).sum(dim=2) * executed).sum(dim=1)
    assert torch.allclose(likelihood, expected, atol=1e-4)


def test_an_update_makes_better_decisions_likelier_and_fits_the_critic(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(minibatch=200, target_divergence=10.0), Correction(policy), lr=3e-4, seed=0)
    experience = experience_of(Correction(policy), ppo)
    good = experience.actions_QEA[:, 0, 0] > model.correct(experience.inputs_QI)[:, 0, 0]
    targets = replace(ppo.targets(experience), advantages=torch.where(good, 1.0, -1.0))
    before = model.correct(experience.inputs_QI)[:, 0, 0].mean()
    losses = []
    for iteration in range(4):
        metrics = ppo.update(experience, targets, iteration=iteration, with_policy=True)
        losses.append(metrics["finetune/value_loss"])
    assert float((model.correct(experience.inputs_QI)[:, 0, 0].mean() - before).detach()) > 0.005
    assert losses[-1] < 0.5 * losses[0] or losses[-1] < 1e-3
    assert 0.01 <= float(ppo.sigma.min()) <= float(ppo.sigma.max()) <= 0.2


def test_the_policy_rests_while_the_critic_warms_up_and_beyond_the_divergence(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(minibatch=50, target_divergence=1e-9), Correction(policy), lr=3e-4, seed=0)
    experience = experience_of(Correction(policy), ppo)
    targets = ppo.targets(experience)
    ppo.update(experience, targets, iteration=0, with_policy=False)
    assert not last_layer(model).weight.any()
    metrics = ppo.update(experience, targets, iteration=1, with_policy=True)
    assert metrics["finetune/policy_steps"] <= 3


def whole_policy(run: Path) -> WholePolicy:
    actor = make_actor(Policy.load(run), FinetuneConfig(trains="policy"))
    assert isinstance(actor, WholePolicy)
    return actor


def test_the_whole_policy_begins_as_the_base_policy_and_learns(tiny_run: Path, reach_store: EpisodeStore) -> None:
    actor, base = whole_policy(tiny_run), Policy.load(tiny_run)
    states = reach_store.steps("state")[:40]
    assert np.array_equal(actor.policy.predict(states), base.predict(states))
    untrained = {name for name, _ in base.model.named_parameters()} - {name for name, _ in actor.named_parameters()}
    assert {name.split("_")[0] for name in untrained} == {"cvae"}, "the encoder of the CVAE has no part in the actions"
    moved = {}
    for base_weight in (0.0, 10.0):
        actor = whole_policy(tiny_run)
        ppo = PPO(PPOConfig(minibatch=200, target_divergence=10.0, base_weight=base_weight), actor, lr=1e-4, seed=0)
        experience = experience_of(actor, ppo)
        with torch.no_grad():
            before = actor.means(experience.inputs_QI)
        assert torch.allclose(before, actor.base_means(experience.inputs_QI), atol=1e-5)
        good = experience.actions_QEA[:, 0, 0] > before[:, 0, 0]
        targets = replace(ppo.targets(experience), advantages=torch.where(good, 1.0, -1.0))
        for iteration in range(3):
            metrics = ppo.update(experience, targets, iteration=iteration, with_policy=True)
        with torch.no_grad():
            gain = actor.means(experience.inputs_QI)[:, 0, 0] - before[:, 0, 0]
        assert float(gain.mean()) > 0
        moved[base_weight] = metrics["finetune/base_divergence"]
    assert 0 < moved[10.0] < 0.5 * moved[0.0], "the weight keeps it near the base policy"
    assert np.array_equal(base.predict(states), Policy.load(tiny_run).predict(states)), "the base is not trained"


def test_only_states_and_one_step_to_the_actions_allow_the_whole_policy(
    tiny_run: Path, images_store: EpisodeStore, tmp_path: Path
) -> None:
    short = ["trainer.steps=1", "trainer.batch_size=4", "selection.num_evaluations=0", "policy.dim_model=16"]
    images = ["policy=act_image_small", "policy.cameras=[corner4]"]
    for overrides, message in ((images, "with images can only be corrected"), (["policy=flow_small"], "not flow")):
        run = tmp_path / message[:4]
        Trainer(compose(TrainConfig, [*overrides, *short]), [images_store], run, evaluator=None).train()
        with pytest.raises(TrainingError, match=rf"trains=policy: .*{message}.* Fix: trains=correction"):
            make_actor(Policy.load(run), FinetuneConfig(trains="policy"))


@pytest.mark.parametrize("trains", ["correction", "policy"])
def test_the_result_is_an_ordinary_checkpoint_that_resumes_to_the_same_weights(
    trains: str, tiny_run: Path, tmp_path: Path
) -> None:
    curriculum = ["failed_fraction=0.3", "core_fraction=0.3", "widen_iterations=4", "failing_tasks=0.5"]
    options = [*SMALL, f"trains={trains}", "patience=9", "ppo.return_scaling=true", *curriculum]
    whole = act_kit.finetune(tiny_run, tmp_path / "whole", overrides=options, steps=8000, workers=1)
    assert [step for step, _ in series(tmp_path / "whole", "finetune/divergence")]
    assert len(series(tmp_path / "whole", "eval/success")) >= 2

    def interrupt(progress: object) -> None:
        if series(tmp_path / "parts", "finetune/success")[-1][0] > 4000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        act_kit.finetune(tiny_run, tmp_path / "parts", overrides=options, steps=8000, workers=1, on_progress=interrupt)
    act_kit.finetune(out=tmp_path / "parts", resume=True, workers=1)
    last = [Policy.load(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts")]
    assert last[0].weights_hash == last[1].weights_hash != Policy.load(tiny_run).weights_hash
    assert last[0].metadata.step == last[1].metadata.step >= 8000
    evaluation = act_kit.evaluate(whole, episodes=2, overrides=["baseline_episodes=0", "demonstrated_episodes=0"])
    assert evaluation.success.num == 2


def test_what_cannot_be_finetuned_is_refused(tiny_run: Path, tmp_path: Path, reach_store: EpisodeStore) -> None:
    averaging = Policy.load(tiny_run).with_chunking(temporal_ensemble=True)
    with pytest.raises(TrainingError, match="averages overlapping chunks"):
        make_actor(averaging, FinetuneConfig())
    with pytest.raises(ConfigError, match="expected more than 0"):
        FinetuneConfig(minutes=0)
    assert [FinetuneConfig().budget_minutes, FinetuneConfig(steps=1).budget_minutes] == [10, 0]
    with pytest.raises(CheckpointError, match="no"):
        act_kit.finetune(tmp_path / "nothing")
    from tests.conftest import make_run

    config = make_run(tmp_path / "run", [reach_store.path], ["policy.name=residual", "trainer.steps=2"], {})
    with pytest.raises(TrainingError, match="trained by rollouts"):
        Trainer(config, [reach_store], tmp_path / "run", evaluator=None).train()


def test_a_policy_of_several_tasks_is_finetuned_on_all(tmp_path: Path, tiny_run: Path) -> None:
    policy = add_correction(Policy.load(tiny_run), FinetuneConfig(episodes=4))
    with RolloutPool(1) as roll:
        finetuner = Finetuner(FinetuneConfig(episodes=5), Policy.load(tiny_run), tmp_path, roll=roll)
        first = finetuner._draw()
        assert len(first) == 5
        assert first == finetuner._draw()
        outcomes = roll(PolicyAgent(policy), first, stop_at_success=True)
        finetuner.iteration = 1
        assert not set(first) & set(finetuner._draw())
    assert len(outcomes) == 5


def fit_critic(run: Path, **changes: object) -> tuple[torch.Tensor, float]:
    """Return the corrections after three updates, and how far the critic is from the returns."""
    policy, model = corrected(run)
    ppo = PPO(PPOConfig(minibatch=200, **changes), Correction(policy), lr=3e-4, seed=0)  # type: ignore[arg-type]
    experience = experience_of(Correction(policy), ppo)
    targets = replace(ppo.targets(experience), returns=torch.linspace(0.2, 1, len(experience.time_left_Q)))
    for iteration in range(3):
        ppo.update(experience, targets, iteration=iteration, with_policy=True)
    with torch.no_grad():
        error = (ppo.critic(experience.inputs_QI, experience.time_left_Q) - targets.returns).abs().mean()
        return model.correct(experience.inputs_QI), float(error)


def test_the_size_of_the_reward_changes_nothing_unless_values_are_clipped_absolutely(tiny_run: Path) -> None:
    corrections, error = fit_critic(tiny_run)
    for reward in (10.0, 1000.0):
        assert torch.equal(fit_critic(tiny_run, reward=reward)[0], corrections)
    assert fit_critic(tiny_run, reward=1000.0, value_clip="absolute")[1] > 2 * error, "the critic cannot follow"
    assert fit_critic(tiny_run, reward=1.0, value_clip="absolute", value_clip_range=2.0)[1] == pytest.approx(error)


def test_each_iteration_has_noise_of_its_own(tiny_run: Path, tmp_path: Path) -> None:
    explored: list[Choices] = []
    with RolloutPool(1) as roll:

        def record(agent: Agent, *arguments: Any, **options: Any) -> list[Episode]:
            episodes = roll(agent, *arguments, **options)
            if isinstance(agent, ExploringAgent):
                explored.append(episodes[0].notes)
            return episodes

        finetuner = Finetuner(FinetuneConfig(episodes=2, horizon=50), Policy.load(tiny_run), tmp_path, roll=record)
        model = finetuner.policy.model
        assert isinstance(model, Residual)
        for _ in range(2):
            finetuner._iterate()
    with torch.no_grad():
        first, second = (notes.actions_QEA[0] - model.correct(notes.inputs_QI[:1])[0] for notes in explored)
    assert not torch.allclose(first, second, atol=1e-3)


def decisions_of(model: Residual, ppo: PPO, num: int) -> Experience:
    """Return decisions of one failed episode, with random inputs and the noise of a rollout."""
    generator = torch.Generator().manual_seed(0)
    inputs_QI = torch.randn(num, model.num_inputs, generator=generator)
    size = model.config.num_actions
    with torch.no_grad():
        noise_QEA = torch.randn(num, size, 4, generator=generator)
        actions_QEA = model.correct(inputs_QI) + ppo.sigma * noise_QEA
    return Experience(
        inputs_QI=inputs_QI,
        actions_QEA=actions_QEA,
        num_executed_Q=torch.full((num,), size),
        time_left_Q=torch.linspace(1, 0, num),
        decisions=[make_decisions(size * np.arange(num), size * num, None, gamma=0.999)],
        num_steps=size * num,
        num_succeeded=0,
    )


def test_actions_do_not_depend_on_the_environments_that_are_asked_with_it(
    tiny_run: Path, reach_store: EpisodeStore
) -> None:
    """How many wait for actions at the same time depends on the processes, and on how fast they are."""
    policy, model = corrected(tiny_run)
    with torch.no_grad():
        last_layer(model).weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    states = reach_store.steps("state")[:40]
    init_states = InitialStateDistribution("reach-v3").sample(40, seed=0, stream="finetune")

    def plan(size: int) -> np.ndarray:
        agent = ExploringAgent(Correction(policy), torch.full((4,), 0.1), seeds=(0, 0))
        for row, init_state in enumerate(init_states):
            agent.begin(row, init_state, row)
        parts = np.split(np.arange(40), range(size, 40, size))
        return np.concatenate([agent.plan(states[rows], rows, None) for rows in parts])

    together = plan(40)
    for size in (1, 3, 7):
        assert np.array_equal(plan(size), together), size


def test_a_single_decision_that_is_left_over_changes_no_policy(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(minibatch=20, epochs=2, target_divergence=1e9), Correction(policy), lr=3e-4, seed=0)
    experience = decisions_of(model, ppo, 41)
    metrics = ppo.update(experience, ppo.targets(experience), iteration=0, with_policy=True)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert all(bool(parameter.isfinite().all()) for parameter in model.correction.parameters())
    assert metrics["finetune/policy_steps"] == 4, "two minibatches in two epochs"


def test_the_metrics_count_the_steps_that_were_taken_and_how_far_they_led(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(minibatch=20, target_divergence=1e-3), Correction(policy), lr=0.1, seed=0)
    experience = decisions_of(model, ppo, 40)
    targets = ppo.targets(experience)
    metrics = ppo.update(experience, targets, iteration=0, with_policy=True)
    assert metrics["finetune/policy_steps"] == 1, "the second minibatch is too far from the rollouts"
    with torch.no_grad():
        now = ppo.log_likelihood(model.correct(experience.inputs_QI), experience.actions_QEA, experience.num_executed_Q)
    log_ratio = now - targets.log_likelihoods
    assert metrics["finetune/divergence"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()))


def test_values_are_recorded_in_units_of_a_success_with_scaled_returns_too(tiny_run: Path) -> None:
    policy, model = corrected(tiny_run)
    ppo = PPO(PPOConfig(minibatch=20, return_scaling=True), Correction(policy), lr=3e-4, seed=0)
    ppo.return_scale = 0.01
    experience = decisions_of(model, ppo, 40)
    targets = ppo.targets(experience)
    metrics = ppo.update(experience, targets, iteration=0, with_policy=False)
    assert ppo.return_scale != 0.01
    assert metrics["finetune/value_high"] == pytest.approx(0.01 * float(targets.values.max()))
    returns = targets.returns * ppo.return_scale
    expected = 1 - float((returns - 0.01 * targets.values).var() / returns.var())
    assert metrics["finetune/explained_variance"] == pytest.approx(expected, abs=1e-3)


def test_noise_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.sigma=0\.6: expected ppo\.sigma_min=0\.01 to ppo\.sigma_max=0\.5"):
        PPOConfig(sigma=0.6)
    assert PPOConfig(sigma=0.6, sigma_max=0.6).sigma == 0.6
