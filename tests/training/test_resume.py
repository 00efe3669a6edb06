"""Resuming a run with more steps or moved data, and initializing a run from another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, ConfigError, DatasetError
from act_kit.files import read_yaml
from act_kit.policies.policy import Policy
from act_kit.training.run import config_of, load_run
from act_kit.training.schedule import choose_steps
from act_kit.training.trainer import Trainer
from tests.conftest import IMAGES, TINY, act, continue_run, make_dataset, make_run, tiny_config
from tests.test_cli import run as run_here

SHORT = (*TINY, "selection.num_evaluations=0", "trainer.steps=40")


@pytest.fixture
def finished(reach_store: EpisodeStore, tmp_path: Path) -> Path:
    """A run of 40 steps, finished."""
    run = tmp_path / "run"
    config = make_run(run, [reach_store.path], SHORT, {})
    Trainer(config, [reach_store], run, evaluator=None).train()
    return run


def test_more_steps_continue_on_the_longer_schedule_and_are_recorded(finished: Path, reach_store: EpisodeStore) -> None:
    before = Policy.load(finished).model.state_dict()
    config, folders = continue_run(finished, [], [], {"trainer.steps": 60})
    assert config.trainer.steps == 60
    trainer = Trainer(config, [EpisodeStore.open(path) for path in folders], finished, evaluator=None)
    trainer.resume()
    assert trainer.step == 40
    trainer.train()
    policy = Policy.load(finished)
    assert policy.metadata.step == 60
    assert any(not torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert policy.folder is not None
    recorded = config_of(policy.folder)
    assert recorded is not None
    assert (recorded["trainer"]["steps"], recorded["extended_at"]) == (60, [40])
    assert continue_run(finished, [], [], {})[0] == config


def test_a_run_keeps_the_number_of_steps_that_was_chosen_for_its_data(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    chosen = {"trainer.steps": 0, "trainer.validate_every": 0}
    make_run(tmp_path / "run", [reach_store.path], TINY, chosen)
    config, _ = continue_run(tmp_path / "run", [], [], chosen)
    assert config.trainer.steps == choose_steps(reach_store.num_steps, 75)
    assert read_yaml(tmp_path / "run" / "config.yaml")["steps_follow_data"] is True
    continue_run(tmp_path / "run", [], [], {"trainer.steps": config.trainer.steps + 1})
    assert "steps_follow_data" not in read_yaml(tmp_path / "run" / "config.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trainer.steps=20"], "trainer.steps=40, not 20"),
        (["trainer.lr=0.5"], "trainer.lr=0.002, not 0.5"),
        (["policy=act"], "policy.chunk_size=8, not 100"),
    ],
)
def test_changed_options_are_refused_and_named(finished: Path, given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        continue_run(finished, [], given, {})
    continue_run(finished, [], SHORT, {})


def test_moved_data_are_checked_by_fingerprint(
    finished: Path, reach_store: EpisodeStore, one_init_state_store: EpisodeStore, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(reach_store.path, moved)
    with pytest.raises(CheckpointError, match="fingerprints differ"):
        continue_run(finished, [one_init_state_store.path], [], {})
    assert continue_run(finished, [moved], [], {})[1] == [moved]
    assert load_run(finished)[1] == [moved]
    shutil.rmtree(moved)
    missing = act("train", "--resume", "--out", finished, check=2).stderr
    assert f"act train --resume --out {finished} --data PATH" in missing


def test_the_same_command_starts_and_resumes_a_run(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run [1]"
    command = ("train", "--data", reach_store.path, *SHORT, "--out", out, "--resume")
    for _ in range(2):
        code, output, err = run_here(monkeypatch, capsys, *command)
        assert code == 0, err
        assert f"act eval '{out}'" in output
    code, _, err = run_here(monkeypatch, capsys, *command, "trainer.lr=0.3")
    assert (code, "trainer.lr=0.002, not 0.3" in err) == (2, True), err


def test_a_run_is_initialized_with_the_weights_and_normalizer_of_another(
    finished: Path, push_store: EpisodeStore, tmp_path: Path
) -> None:
    config = tiny_config("selection.num_evaluations=0", "trainer.steps=1", "trainer.lr=1e-12", f"init_from={finished}")
    Trainer(config, [push_store], str(tmp_path / "new" / "folder"), evaluator=None).train()
    policy, initial = Policy.load(tmp_path / "new" / "folder"), Policy.load(finished)
    for name, value in initial.model.state_dict().items():
        assert torch.allclose(policy.model.state_dict()[name], value, atol=1e-6), name
    for name, value in initial.normalizer.state_dict().items():
        assert torch.equal(policy.normalizer.state_dict()[name], value), name


def test_a_run_that_fails_its_checks_creates_no_folder(finished: Path, images: Path, tmp_path: Path) -> None:
    small = ("policy.dim_model=32", "policy.dim_feedforward=64")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    wrong = [*IMAGES, "policy.backbone=resnet18", f"policy.backbone_weights={tmp_path / 'bad.pth'}"]
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        make_run(tmp_path / "new", [images], [*small, *wrong], {})
    with pytest.raises(CheckpointError, match=r"policy\.chunk_size=8, here it is 16"):
        make_run(tmp_path / "new", [images], [f"init_from={finished}"], {})
    with pytest.raises(ConfigError, match=r"bad\.pth"):
        make_run(tmp_path / "new", [images], [f"policy.task_embeddings={tmp_path / 'bad.pth'}"], {})
    with pytest.raises(DatasetError):
        make_run(tmp_path / "new", [tmp_path / "nowhere"], [], {})
    assert not (tmp_path / "new").exists()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A dataset with black images of corner4."""
    from act_kit.datasets.images import ImageStore
    from act_kit.sim.render import RenderSettings

    store = make_dataset(tmp_path / "images", n=2)
    images = ImageStore.create(store, "corner4", RenderSettings(height_px=32, width_px=32))
    images.begin("nobody")
    for length in store.episode_lengths:
        images.append(torch.zeros(int(length), 32, 32, 3, dtype=torch.uint8).numpy())
    return store.path


def test_torchs_global_state_is_left_unchanged(reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path) -> None:
    config = tiny_config()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        trainer = Trainer(config, [reach_store], tmp_path / "new", evaluator=None)
        trainer.train()
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    trained, expected = (Policy.load(run).model.state_dict() for run in (tmp_path / "new", tiny_run))
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
