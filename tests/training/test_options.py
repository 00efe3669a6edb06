"""Every option of a training does something: changed alone, it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from act_kit.config import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.overrides import options
from act_kit.training.trainer import Trainer
from tests.conftest import IMAGES, tiny_config

SHORT = ("trainer.steps=4", "trainer.validate_every=4", "trainer.log_every=2", "trainer.grad_clip=0.5")

CHANGES = {
    "policy.chunk_size": "6", "policy.dim_model": "64", "policy.dim_feedforward": "32", "policy.num_heads": "2",
    "policy.encoder_layers": "2", "policy.decoder_layers": "2", "policy.cvae_layers": "0", "policy.latent_dim": "4",
    "policy.dropout": "0.5", "chunking.n_action_steps": "2", "chunking.temporal_ensemble": "true", "chunking.temporal_ensemble_coeff": "0.5",
    "trainer.steps": "6", "trainer.batch_size": "16", "trainer.lr": "1e-2", "trainer.warmup_fraction": "0.9",
    "trainer.weight_decay": "10", "trainer.grad_clip": "1e-3", "trainer.kl_weight": "1000", "trainer.ema_decay": "0.9",
    "trainer.seed": "1", "trainer.val_fraction": "0.4", "trainer.log_every": "1", "trainer.validate_every": "2",
    "compute.precision": "bfloat16",
}  # fmt: skip

OF_IMAGES = {
    "policy.inputs": "image+state", "policy.cameras": "[topview]", "policy.backbone": "resnet18",
    "trainer.shift_px": "0",
}  # fmt: skip

ELSEWHERE = {
    "policy.backbone_weights": "tests/training/test_learner.py",
    "policy.task_embeddings": "tests/training/test_learner.py",
    "trainer.stall_timeout_s": "tests/training/test_watchdog.py",
    "compute.compile": "tests/training/test_learner.py",
    "compute.image_storage": "tests/training/test_learner.py",
    "compute.micro_batches": "tests/training/test_learner.py",
    "selection.num_evaluations": "tests/training/test_trainer.py",
    "selection.episodes": "tests/test_cli.py",
    "sim.engine": "tests/test_cli.py",
    "rollout.num_envs": "tests/test_cli.py",
    "init_from": "tests/training/test_resume.py",
    "wandb_project": "tests/test_metrics.py",
}
"""Options whose tests need more than a few steps."""


def test_none_is_forgotten() -> None:
    assert sorted(options(TrainConfig)) == sorted([*CHANGES, *OF_IMAGES, *ELSEWHERE])
    for option, file in ELSEWHERE.items():
        assert f"{option}=" in Path(file).read_text(encoding="utf-8"), option


def trace(store: EpisodeStore, run: Path, *overrides: str) -> Any:
    """Train for a moment and return all that came of it: what was logged, and what the policy says of itself."""
    run.mkdir()
    Trainer(tiny_config(*SHORT, *overrides), [store], run, selector=None).train()
    measured = ("train/steps_per_s", "host/memory")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    policy = json.loads((run / "checkpoints" / "last" / "policy.json").read_text())
    losses = [{name: value for name, value in record.items() if name not in measured} for record in records]
    return losses, policy["chunking"], policy["contract"]["views"]


@pytest.fixture(scope="module")
def untouched(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trace(reach_store, tmp_path_factory.mktemp("untouched") / "run")


@pytest.mark.parametrize("option", CHANGES)
def test_changed_alone_it_shows(option: str, untouched: Any, reach_store: EpisodeStore, tmp_path: Path) -> None:
    assert trace(reach_store, tmp_path / "run", f"{option}={CHANGES[option]}") != untouched


@pytest.mark.gl
def test_options_of_pictures_show(images_store: EpisodeStore, tmp_path: Path) -> None:
    before = trace(images_store, tmp_path / "untouched", *IMAGES)
    for option, value in OF_IMAGES.items():
        assert trace(images_store, tmp_path / option, *IMAGES, f"{option}={value}") != before, option
