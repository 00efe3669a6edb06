"""Another device than the processor, without one: the meta device computes shapes, and refuses the processor's tensors.

What runs there has no tensor on the wrong device, on a GPU either.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from act_kit.config.training import TrainConfig
from act_kit.datasets.chunk_dataset import ChunkSampler
from act_kit.overrides import compose
from act_kit.policies.chunk_model import make_model
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.query_blocks import QUERY_BATCH_SIZE, make_blocks
from act_kit.sim.tasks import STATE_DIM
from act_kit.training.distributed import ProcessGroup
from act_kit.training.learner import Learner

META = torch.device("meta")
PRESETS = ("act_small", "act", "act_image_small", "act_keypoints", "act_image", "flow_small", "mip_small")
VARIANTS = {
    **{preset: (f"policy={preset}",) for preset in PRESETS},
    "recognized tasks": ("policy.recognize_task=true",),
    "moving average, in parts": ("trainer.ema_decay=0.99", "compute.micro_batches=2"),
    "state and images": ("policy=act_image_small", "policy.inputs=image+state", "trainer.shift_px=2"),
}
TASKS = ("push-v3", "reach-v3")
NUM_STEPS = 40


def make_sampler(config: TrainConfig) -> ChunkSampler:
    """Return steps of two tasks on the meta device."""
    num_cameras = len(config.policy.cameras)
    with META:
        index = torch.zeros(NUM_STEPS, dtype=torch.int64)
        return ChunkSampler(
            states_TS=torch.zeros(NUM_STEPS, STATE_DIM),
            actions_TA=torch.zeros(NUM_STEPS, 4),
            first_T=index,
            last_T=index,
            tasks_T=index,
            images_TCHW3=torch.zeros(NUM_STEPS, num_cameras, 64, 64, 3, dtype=torch.uint8) if num_cameras else None,
            chunk_size=config.policy.chunk_size,
            train_steps=torch.arange(30),
            cumulative_T=torch.zeros(30, dtype=torch.float64),
            val_steps=torch.arange(30, NUM_STEPS),
            cameras_C34=torch.zeros(num_cameras, 3, 4) if num_cameras else None,
        )


def test_the_meta_device_refuses_tensors_of_the_processor() -> None:
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        torch.zeros(3, device=META) + torch.zeros(3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_training_stays_on_its_device(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    config = compose(TrainConfig, [*VARIANTS[variant], "trainer.steps=10", "trainer.batch_size=4"])
    group = ProcessGroup(rank=0, size=1)
    learner = Learner(config, make_sampler(config), TASKS, device=META, group=group)
    learner.optimizer = torch.optim.AdamW(list(learner.names))  # the meta device has no fused one
    losses = learner.step(0)
    assert losses["train/loss"].device == META
    assert all(parameter.grad is None or parameter.grad.device == META for parameter in learner.model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_and_a_validation_stay_on_their_device(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUERY_BATCH_SIZE, "meta", 128)
    config = compose(TrainConfig, [*VARIANTS[variant], "trainer.steps=10", "trainer.batch_size=4"])
    model = make_model(config.policy, num_tasks=2).to(META).eval()
    states, cameras = np.zeros((3, STATE_DIM)), len(config.policy.cameras)
    images = np.zeros((3, cameras, 64, 64, 3), np.uint8) if cameras else None
    first = states if model.recognizes_task else None
    ((observation, num_rows),) = make_blocks(
        Normalizer(STATE_DIM).to(META), META, states, np.zeros(3, np.int64), images, first
    )
    assert num_rows == 3
    chunks = model.predict(observation)
    assert (chunks.device, chunks.shape) == (META, (128, config.policy.chunk_size, 4))
    learner = Learner(config, make_sampler(config), TASKS, device=META, group=ProcessGroup(rank=0, size=1))
    batch = learner._make_batch(learner.sampler.val_steps)
    assert {loss.device for loss in model.compute_validation_loss(batch).values()} == {META}
