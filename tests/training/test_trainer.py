"""Training: deterministic, resumable, and with checkpoints selected by rollouts instead of the loss."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, OutputError, TrainingError
from act_kit.metrics import read_metrics, series
from act_kit.policies.policy import Policy
from act_kit.training.checkpoint import Checkpoints
from act_kit.training.schedule import (
    choose_steps,
    describe_steps,
    learning_rate,
    num_chunks,
    rollout_steps,
    with_schedule,
)
from act_kit.training.trainer import SelectionResult, Trainer
from tests.conftest import tiny_config


class KilledError(Exception):
    """Exception that stops a training run in a test."""


def selection_results(*successes: int) -> list[SelectionResult]:
    return [SelectionResult(successes=s, num=10, low=0, high=1, final_distance=0.1) for s in successes]


def weights(run: Path, link: str = "last") -> dict[str, torch.Tensor]:
    return Policy.load(run / "checkpoints" / link).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def config_with_dropout() -> TrainConfig:
    return tiny_config("policy.dropout=0.1")


def without_machine_metrics(run: Path) -> list[dict[str, float]]:
    records = read_metrics(run)
    for record in records:
        record.pop("train/steps_per_s", None)
        record.pop("host/memory", None)
    return records


def test_the_same_seed_gives_the_same_weights_and_another_seed_other_ones(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        Trainer(tiny_config(f"trainer.seed={seed}"), [reach_store], tmp_path / name, evaluator=None).train()
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert without_machine_metrics(tmp_path / "a") == without_machine_metrics(tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_an_interrupted_run_stops_with_a_checkpoint_of_its_last_step(
    reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path
) -> None:
    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 37:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny_config(), [reach_store], tmp_path, evaluator=None).train(interrupt)
    resumed = Trainer(tiny_config(), [reach_store], tmp_path, evaluator=None)
    resumed.resume()
    assert resumed.step == 37
    resumed.train()
    whole, parts = (Policy.load(run).model.state_dict() for run in (tiny_run, tmp_path))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("killed_at", [5, 27, 40])
def test_resuming_a_killed_run_is_bit_exact(reach_store: EpisodeStore, tmp_path: Path, killed_at: int) -> None:
    """This includes latent noise and dropout; the kill is before the first checkpoint, after one and at one."""
    results = selection_results(3, 5)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    config = config_with_dropout()

    def evaluator(policy: Policy) -> SelectionResult:
        return results[policy.metadata.step == 60]

    Trainer(config, [reach_store], tmp_path / "whole", evaluator=evaluator).train()

    def kill(trainer: Trainer) -> None:
        if trainer.step == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        Trainer(config, [reach_store], tmp_path / "parts", evaluator=evaluator).train(kill)
    torch.randn(1000)  # the generator of a new process is in another state
    resumed = Trainer(config, [reach_store], tmp_path / "parts", evaluator=evaluator)
    resumed.resume()
    assert resumed.step == killed_at // 20 * 20
    resumed.train()
    for link in ("last", "best"):
        assert same(weights(tmp_path / "whole", link), weights(tmp_path / "parts", link))
    assert without_machine_metrics(tmp_path / "whole") == without_machine_metrics(tmp_path / "parts")
    assert Checkpoints(tmp_path / "parts").load_last()[1].best_successes == 5


@pytest.mark.parametrize(
    ("successes", "best"), [((9, 2, 4, 3), 38), ((2, 9, 9, 4), 52)], ids=["an early one", "the later one on a tie"]
)
def test_the_best_checkpoint_is_selected_by_success_not_by_loss(
    reach_store: EpisodeStore, tmp_path: Path, successes: tuple[int, ...], best: int
) -> None:
    results = iter(selection_results(*successes))
    steps = []

    def evaluator(policy: Policy) -> SelectionResult:
        steps.append(policy.metadata.step)
        return next(results)

    policy = Trainer(tiny_config("selection.num_evaluations=4"), [reach_store], tmp_path, evaluator=evaluator).train()
    assert steps == [38, 45, 52, 60]
    assert policy.metadata.step == best
    losses = dict(series(tmp_path, "val/l1"))
    assert min(losses, key=losses.__getitem__) > 38, (
        "the loss would have selected the same checkpoint, so the test proves nothing"
    )
    assert series(tmp_path, "eval/success") == [(s, k / 10) for s, k in zip(steps, successes, strict=True)]
    links = {os.readlink(tmp_path / "checkpoints" / link) for link in ("best", "last")}
    assert links == {f"step-{best:06d}", "step-000060"}
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == links


def test_the_validation_frequency_does_not_change_the_weights(reach_store: EpisodeStore, tmp_path: Path) -> None:
    for every in (7, 60):
        (tmp_path / str(every)).mkdir()
        Trainer(
            tiny_config(f"trainer.validate_every={every}"), [reach_store], tmp_path / str(every), evaluator=None
        ).train()
    assert same(weights(tmp_path / "7"), weights(tmp_path / "60"))


def test_both_l1_losses_are_logged_and_fall(tiny_run: Path) -> None:
    for name in ("val/l1_reconstruction", "val/l1", "train/l1_reconstruction"):
        values = [value for _, value in series(tiny_run, name)]
        assert values[-1] < values[0]


@pytest.mark.parametrize("poisoned_at", [45, 58])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    reach_store: EpisodeStore, tmp_path: Path, poisoned_at: int
) -> None:
    trainer = Trainer(tiny_config("trainer.log_every=50"), [reach_store], tmp_path, evaluator=None)

    def poison(trainer: Trainer) -> None:
        if trainer.step == poisoned_at:
            with torch.no_grad():
                trainer.learner.model.get_parameter("action_out.bias")[0] = math.nan

    with pytest.raises(TrainingError, match=r"diverged: .* not finite at step [56]0.*trainer.lr"):
        trainer.train(poison)
    assert Policy.load(tmp_path).metadata.step == 40


def test_a_run_does_not_resume_on_other_data(tiny_run: Path, one_init_state_store: EpisodeStore) -> None:
    with pytest.raises(CheckpointError, match="was trained on other data"):
        Trainer(tiny_config(), [one_init_state_store], tiny_run, evaluator=None).resume()


def test_space_is_checked_before_training(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="checkpoints of this run need about"):
        Trainer(tiny_config(), [reach_store], tmp_path, evaluator=None)


def test_schedule_rises_and_falls_to_zero() -> None:
    rates = [learning_rate(step, steps=100, peak=1.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] < 0.01
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_rollouts_are_spread_and_end_with_the_last_step() -> None:
    assert rollout_steps(2000, 10) == list(range(1100, 2001, 100))
    assert rollout_steps(60, 1) == [60]


def test_the_status_line_shows_na_before_the_first_measurement(reach_store: EpisodeStore, tmp_path: Path) -> None:
    lines: list[str] = []
    trainer = Trainer(tiny_config(), [reach_store], tmp_path, evaluator=lambda policy: selection_results(7)[0])
    trainer.train(lambda trainer: lines.append(trainer.status()))
    assert "val n/a, success n/a" in lines[0]
    assert "success 70 [0, 100] %" in lines[-1]


@pytest.mark.e2e
def test_a_run_that_slows_down_warns(reach_store: EpisodeStore, tmp_path: Path) -> None:
    warnings: dict[int, str] = {}

    def on_step(trainer: Trainer) -> None:
        if trainer.last_logged_step == trainer.step:
            warnings[trainer.step] = trainer.slow_warning()
        if trainer.step >= 40:
            time.sleep(0.3)

    Trainer(tiny_config(), [reach_store], tmp_path / "run", evaluator=None).train(on_step)
    assert "down from" in warnings[60]


def test_the_number_of_steps_follows_the_data(reach_store: EpisodeStore, push_store: EpisodeStore) -> None:
    assert [choose_steps(chunks, 75) for chunks in (1, 9_000, 450_000)] == [100, 7_200, 50_400]
    chunks = num_chunks([reach_store, push_store])
    assert chunks == reach_store.num_steps + push_store.num_steps
    chosen = with_schedule(tiny_config("trainer.steps=0", "trainer.validate_every=0"), chunks)
    assert chosen.trainer.steps == choose_steps(chunks, 75)
    assert chosen.trainer.validate_every == math.ceil(chosen.trainer.steps / 10)
    assert "by default 75 times the square root" in describe_steps(chosen, chunks)
    fewer = with_schedule(tiny_config("trainer.steps=0", "trainer.steps_per_root=40"), chunks)
    assert fewer.trainer.steps == choose_steps(chunks, 40) < chosen.trainer.steps
    assert "by default 40 times the square root" in describe_steps(fewer, chunks)
    given = tiny_config("trainer.steps=60")
    assert with_schedule(given, chunks) == given
    assert describe_steps(given, 1000).startswith("60 steps of 32 chunks, 1.9 passes over the 1000 in the data")
    assert "by default" not in describe_steps(given, chunks)


def test_a_policy_of_many_tasks_has_fewer_selection_episodes_per_task() -> None:
    selection = tiny_config("selection.episodes=20", "selection.max_episodes=100").selection
    assert [selection.episodes_per_task(num) for num in (1, 5, 10, 50, 200)] == [20, 20, 10, 2, 1]
    assert tiny_config("selection.episodes=20").selection.episodes_per_task(50) == 20
