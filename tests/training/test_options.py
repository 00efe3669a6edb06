"""Every training option has an effect: changing it alone changes the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.metrics import read_metrics
from act_kit.options import declared
from act_kit.training.trainer import Trainer
from tests.conftest import IMAGES, tiny_config

SHORT = ("trainer.steps=4", "trainer.validate_every=4", "trainer.log_every=2", "trainer.grad_clip=0.5")

CHANGES = {
    "policy.chunk_size": "6",
    "policy.dim_model": "64",
    "policy.dim_feedforward": "32",
    "policy.num_heads": "2",
    "policy.encoder_layers": "2",
    "policy.decoder_layers": "2",
    "policy.cvae_layers": "0",
    "policy.relative_positions": "false",
    "policy.velocities": "false",
    "trainer.max_share_after_success": "0",
    "policy.latent_dim": "4",
    "policy.dropout": "0.5",
    "chunking.n_action_steps": "2",
    "chunking.temporal_ensemble": "true",
    "chunking.temporal_ensemble_coeff": "0.5",
    "trainer.steps": "6",
    "trainer.batch_size": "16",
    "trainer.lr": "1e-2",
    "trainer.warmup_fraction": "0.9",
    "trainer.weight_decay": "10",
    "trainer.grad_clip": "1e-3",
    "policy.kl_weight": "1000",
    "trainer.ema_decay": "0.9",
    "trainer.seed": "1",
    "trainer.val_fraction": "0.4",
    "trainer.log_every": "1",
    "trainer.validate_every": "2",
    "compute.precision": "bfloat16",
}

IMAGE_CHANGES = {
    "policy.inputs": "image+state",
    "policy.cameras": "[topview]",
    "policy.backbone": "resnet18",
    "trainer.shift_px": "0",
}

TESTED_ELSEWHERE = {
    "policy.position_weight": "tests/policies/test_keypoints.py",
    "policy.name": "tests/policies/test_custom_head.py",
    "policy.head": "tests/policies/test_custom_head.py",
    "policy.backbone_weights": "tests/training/test_learner.py",
    "policy.recognize_task": "tests/policies/test_recognition.py",
    "policy.task_embeddings": "tests/training/test_learner.py",
    "trainer.steps_per_root": "tests/training/test_trainer.py",
    "trainer.stall_timeout_s": "tests/training/test_watchdog.py",
    "compute.compile": "tests/training/test_learner.py",
    "compute.image_storage": "tests/training/test_learner.py",
    "compute.micro_batches": "tests/training/test_learner.py",
    "selection.num_evaluations": "tests/training/test_trainer.py",
    "selection.max_episodes": "tests/training/test_trainer.py",
    "selection.episodes": "tests/test_cli_pipeline.py",
    "sim.engine": "tests/test_cli_pipeline.py",
    "rollout.num_envs": "tests/test_cli_pipeline.py",
    "init_from": "tests/training/test_resume.py",
    "wandb_project": "tests/test_metrics.py",
}
"""Options whose tests need more than a few steps."""


def test_every_option_has_a_test() -> None:
    assert sorted(declared(TrainConfig)) == sorted([*CHANGES, *IMAGE_CHANGES, *TESTED_ELSEWHERE])
    for option, file in TESTED_ELSEWHERE.items():
        assert f"{option}=" in Path(file).read_text(encoding="utf-8"), option


def trace(store: EpisodeStore, run: Path, *overrides: str) -> Any:
    """Train for a few steps and return the logged losses, the policy's chunking and its camera views."""
    run.mkdir()
    Trainer(tiny_config(*SHORT, *overrides), [store], run, evaluator=None).train()
    losses = read_metrics(run)
    for record in losses:
        record.pop("host/memory", None)
        record.pop("train/steps_per_s", None)
    policy = json.loads((run / "checkpoints" / "last" / "policy.json").read_text())
    return losses, policy["chunking"], policy["metadata"]["views"]


@pytest.fixture(scope="module")
def reference(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trace(reach_store, tmp_path_factory.mktemp("reference") / "run")


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_has_an_effect(option: str, reference: Any, reach_store: EpisodeStore, tmp_path: Path) -> None:
    assert trace(reach_store, tmp_path / "run", f"{option}={CHANGES[option]}") != reference


@pytest.mark.gl
def test_image_options_have_an_effect(images_store: EpisodeStore, tmp_path: Path) -> None:
    reference = trace(images_store, tmp_path / "reference", *IMAGES)
    for option, value in IMAGE_CHANGES.items():
        assert trace(images_store, tmp_path / option, *IMAGES, f"{option}={value}") != reference, option
