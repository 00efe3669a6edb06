"""Untrained policies, for tests in which the actions do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from act_kit.config.policy import ACTConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.overrides import compose
from act_kit.policies.heads.act import ACT
from act_kit.policies.metadata import PolicyMetadata, TrainingDataset
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.sim.render import CameraViews, RenderSettings
from act_kit.sim.tasks import STATE_DIM
from tests.conftest import TINY


def untrained_policy(stores: Sequence[EpisodeStore], gl_renderer: str = "") -> Policy:
    """Return an untrained policy with one task per dataset; with cameras if ``gl_renderer`` is given."""
    overrides, views = [*TINY], None
    if gl_renderer:
        overrides += ["policy=act_image_small", "policy.cameras=[corner4,gripperPOV]"]
        views = CameraViews(cameras=("corner4", "gripperPOV"), settings=RenderSettings(height_px=32, width_px=32))
    config = compose(TrainConfig, overrides)
    datasets = [
        TrainingDataset(
            task=store.info.task,
            fingerprint=store.compute_fingerprint(),
            command=store.info.command,
            init_states=store.rand_vecs.tolist(),
        )
        for store in stores
    ]
    metadata = PolicyMetadata(
        datasets=datasets,
        horizon=500,
        control_hz=80,
        versions={},
        step=0,
        goal_visible=views is None,
        views=views,
        gl_renderer=gl_renderer,
    )
    torch.manual_seed(0)
    assert isinstance(config.policy, ACTConfig)
    model, normalizer = ACT(config.policy, num_tasks=len(stores)), Normalizer(STATE_DIM)
    normalizer.fit(torch.from_numpy(stores[0].steps("state")).float())
    return Policy(model, normalizer, metadata, config.chunking)
