"""The heads flow and mip: what they learn, and that they go the way that every head goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from act_kit.config.policy import PolicyConfig, head_names
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.overrides import compose, preset_of, presets, train_overrides
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, make_model
from act_kit.policies.heads.flow import Flow
from act_kit.policies.heads.mip import MIP
from act_kit.policies.policy import Policy
from act_kit.training.trainer import Trainer
from tests.conftest import make_run

DENOISERS = ("flow", "mip")
TINY = ("policy.dim_model=32", "policy.dim_feedforward=64", "policy.num_heads=2", "policy.chunk_size=8")


def make(name: str, *overrides: str, num_tasks: int = 1) -> ChunkModel:
    torch.manual_seed(0)
    return make_model(compose(TrainConfig, [f"policy={name}_small", *TINY, *overrides]).policy, num_tasks=num_tasks)


def observe(states: torch.Tensor) -> Observation:
    tasks = torch.zeros(len(states), dtype=torch.int64)
    return Observation(states_BS=states, raw_states_BS=states, tasks_B=tasks, images_BCHW3=None)


def batch(states: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor | None = None) -> ChunkBatch:
    is_pad = torch.zeros(actions.shape[:2], dtype=torch.bool)
    num_valid = torch.tensor(is_pad.numel())
    return ChunkBatch(
        observation=observe(states),
        actions_BKA=actions,
        is_pad_BK=is_pad,
        num_valid=num_valid,
        batch_size=len(actions),
        noise=noise,
    )


def fit(model: ChunkModel, sample: Callable[[], ChunkBatch], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(sample())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("name", DENOISERS)
def test_predictions_are_deterministic_and_draw_no_random_numbers(name: str) -> None:
    model, states = make(name).eval(), torch.randn(5, 39)
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    first = model.predict(observe(states))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(first, model.predict(observe(states)))
    assert first.shape == (5, 8, 4)


@pytest.mark.parametrize("name", DENOISERS)
def test_the_loss_of_a_batch_is_the_sum_of_its_parts(name: str) -> None:
    model, states, actions = make(name), torch.randn(6, 39), torch.randn(6, 8, 4)
    noise = model.draw_noise(6, torch.device("cpu"))
    assert noise is not None
    whole = model.compute_loss(batch(states, actions, noise))
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        part = batch(states[rows], actions[rows], noise[rows])
        parts.append(model.compute_loss(ChunkBatch(**{**vars(part), "num_valid": torch.tensor(48), "batch_size": 6})))
    for key in whole:
        assert torch.allclose(whole[key], parts[0][key] + parts[1][key], atol=1e-5), key


@pytest.mark.parametrize("name", DENOISERS)
def test_a_function_of_the_state_is_learned(name: str) -> None:
    model, states = make(name), torch.randn(64, 39)
    actions = states[:, :4].tanh()[:, None].repeat(1, 8, 1)
    samples = batch(states, actions)
    with torch.no_grad():
        before = float(samples.l1(model.predict(samples.observation)))
    fit(model, lambda: samples, 300)
    with torch.no_grad():
        assert float(samples.l1(model.predict(samples.observation))) < 0.4 * before


def two_ways() -> ChunkBatch:
    """Return demonstrations that go left or right with equal probability, whatever they observe."""
    side = torch.randint(2, (64, 1, 1)) * 2.0 - 1
    return batch(torch.randn(64, 39), 0.8 * side.expand(-1, 8, 4))


def test_flow_chooses_one_of_two_ways_where_an_l1_or_l2_may_not() -> None:
    flow, mip = make("flow", "policy.flow_steps=10"), make("mip")
    for model in (flow, mip):
        fit(model, two_ways, 400)
    states = torch.randn(64, 39)
    with torch.no_grad():
        chosen, mean = flow.predict(observe(states)).abs(), mip.predict(observe(states)).abs()
    assert chosen.mean() == pytest.approx(0.8, abs=0.15), "near one of the ways"
    assert mean.mean() < 0.4, "a regression predicts the mean of both, or nearly"


def test_flow_integrates_its_velocity_from_the_noise_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make("flow", "policy.flow_steps=4")
    assert isinstance(flow, Flow)
    times: list[float] = []

    def constant(memory: object, noisy_BKA: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        times.append(float(time_B[0]))
        return torch.ones_like(noisy_BKA)

    monkeypatch.setattr(flow, "denoise", constant)
    predicted = flow.predict(observe(torch.randn(2, 39)))
    assert times == [0.0, 0.25, 0.5, 0.75]
    assert torch.allclose(predicted, flow.noise_KA + 1)


@pytest.mark.parametrize("name", ["act", *DENOISERS])
def test_a_head_is_trained_saved_loaded_and_resumed(name: str, reach_store: EpisodeStore, tmp_path: Path) -> None:
    options = [f"policy={name}_small", *TINY, "trainer.steps=40", "trainer.batch_size=16"]
    config = make_run(tmp_path, [reach_store.path], options, {})
    Trainer(config, [reach_store], tmp_path, evaluator=None).train()
    policy, states = Policy.load(tmp_path), reach_store.steps("state")[:20]
    assert policy.model.config == config.policy
    assert np.array_equal(policy.predict(states)[7:9], policy.predict(states[7:9]))

    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, [reach_store], tmp_path / "again", evaluator=None).train(interrupt)
    trainer = Trainer(config, [reach_store], tmp_path / "again", evaluator=None)
    trainer.resume()
    assert trainer.train().weights_hash == policy.weights_hash


def test_presets_are_named_after_their_heads() -> None:
    assert head_names() == ["act", "flow", "mip", "residual"]
    for name in presets():
        assert compose(TrainConfig, [f"policy={name}"]).policy.name == name.partition("_")[0]
        assert name.partition("_")[0] in head_names()


@pytest.mark.parametrize("name", DENOISERS)
def test_the_options_of_a_head_are_its_own(name: str) -> None:
    config = compose(TrainConfig, [f"policy={name}_small", "policy.chunk_size=12"])
    assert type(config.policy) is PolicyConfig.kinds[name]
    assert preset_of(config)[0] == f"policy={name}_small"
    assert compose(TrainConfig, train_overrides(config, {})) == config


def test_mip_refines_its_first_prediction() -> None:
    model, states = make("mip").eval(), torch.randn(3, 39)
    assert isinstance(model, MIP)
    memory = model.encode(model.embed(observe(states)))
    first = model.denoise(memory, torch.zeros(3, 8, 4), torch.zeros(3))
    refined = model.denoise(memory, 0.9 * first, torch.full((3,), 0.9))
    assert torch.equal(model.predict(observe(states)), refined)
