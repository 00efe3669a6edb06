"""The folder of a fine-tuning run: what it is made from, what it replaces, and what a resumed run may change."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import act_kit
from act_kit.api.finetune import _default_out
from act_kit.config.finetuning import FinetuneConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, ConfigError, OutputError, TrainingError
from act_kit.files import read_json, write_json
from act_kit.finetuning.actors import make_actor
from act_kit.finetuning.finetuner import Finetuner
from act_kit.finetuning.run import CONFIG, load_run, write_run
from act_kit.metrics import MetricLogger, series
from act_kit.outputs import new_folder
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialState
from act_kit.training.trainer import Trainer
from tests.conftest import contents, tiny_config

SMALL = ("ppo.sigma=0.1", "episodes=2", "select_episodes=2", "select_every=1", "width=32", "ppo.minibatch=200")


@pytest.fixture(scope="module")
def finetuned(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration, and its base beside it."""
    folder = tmp_path_factory.mktemp("finetuned")
    shutil.copytree(tiny_run, folder / "base", symlinks=True)
    act_kit.finetune(folder / "base", folder / "run", overrides=SMALL, steps=1, workers=1)
    return folder


@pytest.fixture
def copy(finetuned: Path, tmp_path: Path) -> Path:
    """A copy of that run and its base, which a test may change."""
    shutil.copytree(finetuned, tmp_path / "copy", symlinks=True)
    _, config = load_run(finetuned / "run")
    write_run(tmp_path / "copy" / "run", tmp_path / "copy" / "base", config)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("run", "out"),
    [
        ("runs/a/", "runs/a-finetuned"),
        ("runs/a/checkpoints/last", "runs/a-finetuned"),
        ("/runs/a/checkpoints/step-000100", "/runs/a-finetuned"),
    ],
)
def test_by_default_it_is_beside_the_run(run: str, out: str) -> None:
    assert _default_out(Path(run)) == Path(out)


def test_a_finetuned_run_can_be_replaced(tmp_path: Path, tiny_run: Path) -> None:
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", tiny_run, FinetuneConfig())
    with new_folder(tmp_path / "run", overwrite=True) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["new"]


def test_what_is_refused_leaves_nothing_and_replaces_nothing(copy: Path) -> None:
    averaging = copy / "averaging"
    shutil.copytree(copy / "base", averaging, symlinks=True)
    description = read_json(averaging / "checkpoints" / "last" / "policy.json")
    description["chunking"]["temporal_ensemble"] = True
    write_json(averaging / "checkpoints" / "last" / "policy.json", description)
    before = contents(copy)
    with pytest.raises(OutputError, match="overlap"):
        act_kit.finetune(copy / "base", copy / "base", overwrite=True)
    with pytest.raises(TrainingError, match="'residual' cannot be fine-tuned"):
        act_kit.finetune(copy / "run", copy / "new")
    with pytest.raises(TrainingError, match="averages overlapping chunks"):
        act_kit.finetune(averaging, copy / "run", overwrite=True)
    assert contents(copy) == before


def test_each_task_needs_an_episode(reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path) -> None:
    Trainer(tiny_config("trainer.steps=1"), [reach_store, push_store], tmp_path, evaluator=None).train()
    base = Policy.load(tmp_path)
    with pytest.raises(TrainingError, match="episodes=1: expected at least 2"):
        make_actor(base, FinetuneConfig(episodes=1))
    with pytest.raises(TrainingError, match="episodes=3: expected at least 4"):
        make_actor(base, FinetuneConfig(episodes=3, failed_fraction=0.5))
    make_actor(base, FinetuneConfig(episodes=4, failed_fraction=0.5))


def test_a_resumed_run_changes_only_when_it_ends(copy: Path) -> None:
    run = copy / "run"
    config = load_run(run)[1]
    _set(run, seed=3)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seed": 0}, "started with seed=3, not 0: only minutes, steps, patience may change"),
        ({"overrides": ["ppo.sigma=0.05"]}, r"started with ppo\.sigma=0\.1, not 0\.05"),
        ({"overrides": ["width=256"]}, "started with width=32, not 256"),
        ({"config": config}, "started with seed=3, not 0"),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            act_kit.finetune(out=run, resume=True, **options)
    with pytest.raises(ConfigError, match="no fine-tuning at"):
        act_kit.finetune(out=copy / "nothing", resume=True)
    (run / CONFIG).write_text("base: [1")
    with pytest.raises(CheckpointError, match="is damaged"):
        act_kit.finetune(out=run, resume=True)


def _set(run: Path, **values: Any) -> None:
    base, config = load_run(run)
    write_run(run, base, FinetuneConfig(**{**vars(config), **values}))


def test_a_base_that_was_moved_is_found_and_another_one_is_refused(copy: Path) -> None:
    run, base = copy / "run", copy / "base"
    (copy / "base").rename(copy / "moved")
    with pytest.raises(CheckpointError, match="was started with, does not exist"):
        act_kit.finetune(out=run, resume=True)
    act_kit.finetune(copy / "moved", run, resume=True, workers=1)
    assert load_run(run)[0] == (copy / "moved").resolve()
    shutil.copytree(copy / "moved", base, symlinks=True)
    path = base / "checkpoints" / "last" / "model.safetensors"
    tensors = load_file(path)
    tensors["normalizer.mean"] += 1e-6  # too little for the self-test
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="started with another policy than the one that is now at"):
        act_kit.finetune(base, run, resume=True, workers=1)
    assert load_run(run)[0] == (copy / "moved").resolve(), "a refused policy is not recorded"


def test_a_damaged_state_is_named(copy: Path) -> None:
    path = copy / "run" / "checkpoints" / "last" / "training.safetensors"
    tensors = load_file(path)
    del tensors["extra/counters"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"is damaged.*counters"):
        act_kit.finetune(out=copy / "run", resume=True, workers=1)


def test_a_resumed_run_knows_the_base_and_continues_with_more_patience(copy: Path) -> None:
    base, config = load_run(copy / "run")
    asked: list[Agent] = []
    with RolloutPool(1) as pool:

        def roll(agent: Agent, init_states: Sequence[InitialState], **options: Any) -> list[Episode]:
            asked.append(agent)
            return pool(agent, init_states, **options)

        finetuner = Finetuner(config, Policy.load(base), copy / "run", roll=roll)
        finetuner.resume()
        finetuner.finetune()
    assert not asked, "the budget is used up, and the successes of the base are in the checkpoint"
    assert "Ended by the budget" in finetuner.result_text()
    _set(copy / "run", steps=10**9, patience=1)
    act_kit.finetune(out=copy / "run", resume=True, workers=1)
    before = len(series(copy / "run", "finetune/success"))
    act_kit.finetune(out=copy / "run", resume=True, workers=1)
    assert len(series(copy / "run", "finetune/success")) == before, "it has ended"
    act_kit.finetune(out=copy / "run", resume=True, overrides=["patience=2"], workers=1)
    assert len(series(copy / "run", "finetune/success")) > before


def test_a_run_that_was_killed_before_its_first_checkpoint_records_the_base_once(
    tiny_run: Path, tmp_path: Path
) -> None:
    logger = MetricLogger(tmp_path, resume_step=-1)
    logger.log(0, {"eval/success": 0.25})
    logger.close()
    with RolloutPool(1) as roll:
        finetuner = Finetuner(
            FinetuneConfig(episodes=1, select_episodes=1, select_every=9, steps=1, width=32),
            Policy.load(tiny_run),
            tmp_path,
            roll=roll,
        )
        finetuner.finetune()
    assert [step for step, _ in series(tmp_path, "eval/success")].count(0) == 1
    assert "1 fit into the budget" in finetuner.plan()
