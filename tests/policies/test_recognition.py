"""Policies that recognize their task from the first state of an episode, and never read the task they are told."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import act_kit
from act_kit.collection.collect import collect
from act_kit.config.collection import CollectConfig
from act_kit.config.finetuning import FinetuneConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor.generalization import measure_loss
from act_kit.errors import ArrayError, ConfigError, DamagedFileError
from act_kit.eval.files import read_evaluations
from act_kit.finetuning.actors import Correction, add_correction
from act_kit.finetuning.exploration import ExploringAgent
from act_kit.metrics import series
from act_kit.overrides import compose
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import evaluation_report, write_results
from act_kit.rollouts.rollout import RolloutPool
from act_kit.serving.client import ServedAgent
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.training.trainer import Trainer
from examples.onnx_policy import OnnxAgent
from tests.conftest import SERIAL, make_run
from tests.serving.servers import serving_policy
from tests.serving.test_client import assert_same, draw

TASKS = ("reach-v3", "push-v3")
SMALL = ("policy.dim_model=32", "policy.dim_feedforward=64", "policy.num_heads=2", "policy.chunk_size=8")
OPTIONS = (*SMALL, "policy.recognize_task=true", "trainer.steps=120", "trainer.batch_size=32", "trainer.lr=1e-2")


def fit(run: Path, stores: list[EpisodeStore], name: str, *overrides: str) -> tuple[Policy, TrainConfig]:
    config = make_run(run, [store.path for store in stores], [f"policy={name}_small", *OPTIONS, *overrides], {})
    return Trainer(config, stores, run, evaluator=None).train(), config


@pytest.fixture(scope="module")
def run(reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that differ in the height of the goal."""
    folder = tmp_path_factory.mktemp("recognition") / "run"
    fit(folder, [reach_store, push_store], "act")
    return folder


@pytest.fixture
def policy(run: Path) -> Policy:
    return Policy.load(run)


def first_states(store: EpisodeStore) -> np.ndarray:
    return np.stack([states[0] for states in store.steps_by_episode("state")])


@pytest.mark.parametrize("name", ["act", "flow", "mip"])
def test_every_head_recognizes_the_task_and_resumes_to_the_same_bytes(
    name: str, reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    stores = [reach_store, push_store]
    policy, config = fit(tmp_path / "run", stores, name)
    assert policy.recognizes_task
    for task, store in enumerate(stores):
        probabilities = policy.recognize_task(first_states(store))
        assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (probabilities.argmax(axis=1) == task).mean() >= 0.75, "one of four demonstrations is not trained on"
    losses = [loss for _, loss in series(tmp_path / "run", "train/task_loss")]
    assert losses[-1] < 0.3 < losses[0]

    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, stores, tmp_path / "again", evaluator=None).train(interrupt)
    trainer = Trainer(config, stores, tmp_path / "again", evaluator=None)
    trainer.resume()
    assert trainer.train().weights_hash == policy.weights_hash


def test_the_told_task_changes_no_bit(policy: Policy, push_store: EpisodeStore) -> None:
    first = first_states(push_store)
    expected = policy.predict(first, first_states=first)
    one_hot = np.concatenate([first, np.tile(np.eye(10)[3], (len(first), 1))], axis=1)
    assert np.array_equal(policy.predict(first, None, ["reach-v3"] * len(first), first), expected)
    assert np.array_equal(policy.predict(first, None, ["no task"] * len(first), first), expected)
    assert np.array_equal(policy.predict(one_hot, first_states=one_hot), expected)
    assert np.array_equal(policy.for_task("reach-v3").predict(first, first_states=first), expected)
    rows, states = np.arange(len(first)), draw(TASKS, 2)
    plans: list[np.ndarray] = []
    for told in (states, [InitialState(TASKS[state.task == TASKS[0]], state.rand_vec) for state in states]):
        agent = PolicyAgent(policy)
        for row, init_state in zip(rows.tolist(), told, strict=True):
            agent.begin(row, init_state, 0)
        plans.append(agent.plan(first, rows, None))
    assert np.array_equal(plans[0], plans[1])


def test_the_first_state_is_held_until_the_episode_ends(policy: Policy, push_store: EpisodeStore) -> None:
    policy = policy.with_chunking(n_action_steps=1)
    push = push_store.episodes()[0].state[:6]
    others = push.copy()
    others[0, -1] = 0.2  # a goal in the air, as in reach-v3
    alone: list[np.ndarray] = []
    for states in (push, others):
        policy.reset()
        alone.append(np.stack([policy.act(state) for state in states]))
        expected = policy.predict(states, first_states=np.tile(states[0], (6, 1)))[:, 0].clip(-1, 1)
        assert np.array_equal(alone[-1], expected)
    assert not np.array_equal(alone[0][1:], alone[1][1:]), "the same states after another first one"
    policy.reset()
    both = [policy.act(np.stack(pair)) for pair in zip(push, others, strict=True)]
    assert np.array_equal(np.stack(both, axis=1), alone), "every environment has its own"
    copied = copy.deepcopy(policy)
    buffer = push[0].copy()
    one = policy.with_chunking()
    one.act(buffer)
    buffer[:] = push[1]
    assert np.array_equal(one.act(buffer), alone[0][1]), "an environment may write into its last observation"
    policy.reset(np.array([True, False]))
    again = policy.act(np.stack([others[0], others[3]]))
    assert np.array_equal(again, [alone[1][0], alone[1][3]]), "another episode began in the first environment"
    assert np.array_equal(copied.act(np.stack([push[3], others[3]])), [alone[0][3], alone[1][3]])


def test_a_state_that_is_refused_is_no_first_state(policy: Policy, push_store: EpisodeStore) -> None:
    state = push_store.episodes()[0].state[0]
    with pytest.raises(ArrayError, match="finite"):
        policy.act(np.full(39, np.nan))
    policy.reset()
    assert np.array_equal(policy.act(state), policy.predict(state[None], first_states=state[None])[0, 0].clip(-1, 1))
    with pytest.raises(ArrayError, match=r"expected first_states, one for each state. Fix: policy.act"):
        policy.predict(state[None])
    with pytest.raises(ArrayError, match="first_states"):
        policy.predict(state[None], first_states=np.stack([state, state]))


def test_two_tasks_of_mt10_begin_with_the_same_states() -> None:
    first: list[np.ndarray] = []
    for task in ("reach-v3", "pick-place-v3", "push-v3"):
        init_states = InitialStateDistribution(task).sample(5, seed=0, stream="evaluate")
        first.append(np.stack([Simulator(task).reset(init_state) for init_state in init_states]))
    assert np.array_equal(first[0], first[1]), "so no policy can tell them apart"
    assert not np.array_equal(first[0], first[2])


def test_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"recognize_task=true with policy.inputs=image\+proprio.*states only"):
        compose(TrainConfig, ["policy=act_image_small", "policy.recognize_task=true"])


def test_a_policy_of_one_task_has_nothing_to_recognize(push_store: EpisodeStore, tmp_path: Path) -> None:
    policy, _ = fit(tmp_path, [push_store], "act", "trainer.steps=2")
    assert not policy.recognizes_task
    with pytest.raises(ArrayError, match="is told its task"):
        policy.recognize_task(first_states(push_store))
    assert policy.predict(first_states(push_store)).shape == (4, 8, 4)


def test_an_evaluation_counts_the_recognized_tasks(policy: Policy, tmp_path: Path) -> None:
    overrides = ["baseline_episodes=0", "demonstrated_episodes=0"]
    evaluation = act_kit.evaluate(policy, "push-v3", episodes=4, workers=1, overrides=overrides)
    first = np.stack([episode.state[0] for episode in evaluation.outcomes])
    num = int((policy.recognize_task(first).argmax(axis=1) == 1).sum())
    assert evaluation.recognized_tasks.get("push-v3", 0) == num >= 2
    assert sum(evaluation.recognized_tasks.values()) == 4
    assert f"task recognized: {num}/4" in repr(evaluation)
    write_results(evaluation, tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["recognized_tasks"]["push-v3"] == num
    (again,) = read_evaluations(tmp_path / "eval")
    assert again.column("recognized_task") == evaluation.column("recognized_task")
    assert "recognized tasks" in str(evaluation_report(again).sections)
    table = tmp_path / "eval" / "episodes.csv"
    table.write_text(table.read_text().replace(",push-v3,", ",push-v2,"))
    with pytest.raises(DamagedFileError, match="recognized_task is 'push-v2'"):
        read_evaluations(tmp_path / "eval")


def test_a_server_ignores_the_prompt(policy: Policy) -> None:
    states = draw(TASKS, 2)
    with RolloutPool(1) as roll, serving_policy(policy) as address, ServedAgent(address) as agent:
        served = roll(agent, states, stop_at_success=True)
        assert_same(served, roll(PolicyAgent(policy), states, stop_at_success=True))


def test_an_export_takes_the_first_states(run: Path, policy: Policy, push_store: EpisodeStore, tmp_path: Path) -> None:
    path = act_kit.export(run, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["states", "first_states"]
    states = push_store.episodes()[0].state[:5].astype(np.float32)
    for first in (states[:1], states[:1] + 0.1):
        given = {"states": states, "first_states": np.repeat(first, 5, axis=0)}
        assert np.abs(session.run(["unclipped_actions"], given)[0] - policy.predict(**given)).max() < 1e-4
    with RolloutPool(1) as roll:
        init_states = draw(TASKS, 1)
        expected = roll(PolicyAgent(policy), init_states, stop_at_success=True)
        for one, other in zip(roll(OnnxAgent(path), init_states, stop_at_success=True), expected, strict=True):
            assert one.state[:30, :3] == pytest.approx(other.state[:30, :3], abs=1e-3)


def test_the_doctor_measures_the_loss_of_training(
    policy: Policy, reach_store: EpisodeStore, push_store: EpisodeStore, run: Path
) -> None:
    stores, total, count = [reach_store, push_store], 0.0, 0
    for store, (_, val_episodes) in zip(stores, split_stores(stores, 0.1, 0), strict=True):
        loss = measure_loss(policy, store, val_episodes)
        total, count = total + loss.sums_E.sum(), count + loss.counts_E.sum()
    assert total / count == pytest.approx(series(run, "val/l1")[-1][1], rel=1e-4)


def test_a_corrected_policy_and_dagger_begin_every_episode_anew(policy: Policy, run: Path, tmp_path: Path) -> None:
    corrected = add_correction(policy, FinetuneConfig(width=32))
    states = draw(TASKS, 2)
    with RolloutPool(1, num_envs=2) as roll:
        expected = roll(PolicyAgent(policy), states, stop_at_success=True)
        assert_same(roll(PolicyAgent(corrected), states, stop_at_success=True), expected)
        silent = ExploringAgent(Correction(corrected), torch.zeros(4), seeds=(0, 0))
        assert_same(roll(silent, states, stop_at_success=True), expected)
    config = compose(
        CollectConfig,
        [f"dagger.run={run}", "dagger.expert_first=0", "dagger.expert_last=0", "noise=0"],
        {"task": "push-v3", "n": 2, "demonstrator": "policy"},
    )
    for episode in collect(config, tmp_path / "data", executor=SERIAL).iter_episodes():
        num = policy.chunking.n_action_steps
        planned = policy.predict(episode.state[num][None], first_states=episode.state[:1])[0, :num]
        assert np.array_equal(episode.executed_action[num : 2 * num], planned.clip(-1, 1))
