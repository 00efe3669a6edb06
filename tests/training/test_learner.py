"""Gradient steps: micro-batches, precision, weight averaging, image storage, multi-task training and compilation."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, TrainingError
from act_kit.metrics import series
from act_kit.policies.policy import Policy
from act_kit.policies.state_features import RELATIVE_DIM, VELOCITY_DIM
from act_kit.policies.vision import FrozenBatchNorm2d, ResNet18
from act_kit.training.trainer import Trainer
from tests.conftest import IMAGES, tiny_config

SHORT = ("trainer.steps=6", "trainer.validate_every=6", "trainer.log_every=1")


def fit(config: TrainConfig, run: Path, *stores: EpisodeStore) -> Trainer:
    run.mkdir(exist_ok=True)
    trainer = Trainer(config, stores, run, evaluator=None)
    trainer.train()
    return trainer


def curve(run: Path, name: str = "train/l1_reconstruction") -> list[float]:
    return [value for _, value in series(run, name)]


def test_parts_of_a_batch_add_up_to_it(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """Padding is spread unevenly over the parts, and the latent noise is drawn for the whole batch."""
    for parts in (1, 3):
        fit(tiny_config(*SHORT, f"compute.micro_batches={parts}"), tmp_path / str(parts), reach_store)
    assert curve(tmp_path / "1") == pytest.approx(curve(tmp_path / "3"), rel=1e-4)
    assert curve(tmp_path / "1", "train/kl") == pytest.approx(curve(tmp_path / "3", "train/kl"), rel=1e-2, abs=1e-6)
    with pytest.raises(ConfigError, match="cannot be divided among 1 processes"):
        fit(tiny_config("compute.micro_batches=33"), tmp_path / "33", reach_store)


def test_bfloat16_changes_losses_only_by_rounding(reach_store: EpisodeStore, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        fit(tiny_config(*SHORT, f"compute.precision={precision}"), tmp_path / precision, reach_store)
    exact, rounded = curve(tmp_path / "float32"), curve(tmp_path / "bfloat16")
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.02)


def test_the_average_of_the_weights_becomes_the_policy(reach_store: EpisodeStore, tmp_path: Path) -> None:
    config = tiny_config("trainer.ema_decay=0.5", "trainer.steps=30", "trainer.validate_every=30")
    expected: dict[str, torch.Tensor] = {}

    def follow(trainer: Trainer) -> None:
        weights = trainer.learner.model.state_dict()
        decay = min(0.5, trainer.step / (9 + trainer.step))
        for name, weight in weights.items():
            average = expected.get(name, initial.state_dict()[name])
            expected[name] = decay * average + (1 - decay) * weight

    trainer = Trainer(config, [reach_store], tmp_path, evaluator=None)
    initial = copy.deepcopy(trainer.learner.model)
    policy = trainer.train(follow)
    for name, weight in policy.model.state_dict().items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
    assert not torch.equal(policy.model.get_parameter("queries"), trainer.learner.model.get_parameter("queries"))


def test_resuming_with_averaged_weights_is_bit_exact(reach_store: EpisodeStore, tmp_path: Path) -> None:
    config = tiny_config("trainer.ema_decay=0.9")

    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 33:
            raise KeyboardInterrupt

    whole = fit(config, tmp_path / "whole", reach_store)
    (tmp_path / "parts").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, [reach_store], tmp_path / "parts", evaluator=None).train(interrupt)
    resumed = Trainer(config, [reach_store], tmp_path / "parts", evaluator=None)
    resumed.resume()
    resumed.train()
    for expected, model in (
        (whole.learner.model, resumed.learner.model),
        (whole.learner.eval_model, resumed.learner.eval_model),
    ):
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))


def test_a_dry_run_counts_operations_and_changes_nothing(reach_store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    trainer = Trainer(tiny_config(), [reach_store], tmp_path / "with", evaluator=None)
    assert "GFLOP/s of large float32 matrix products on this machine" in trainer.dry_run()
    expected = fit(tiny_config(), tmp_path / "without", reach_store).learner.model
    assert torch.equal(trainer.train().model.get_parameter("queries"), expected.get_parameter("queries"))
    assert series(tmp_path / "with", "train/roofline_fraction")
    assert not series(tmp_path / "without", "train/roofline_fraction")


def test_counted_operations_match_a_count_by_hand(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """The model has no CVAE; by hand, 2 operations per weight and token, 3 times with gradients.

    Of the decoder, self-attention and the queries to the memory are computed once for the whole batch.
    """
    config = tiny_config("policy.cvae_layers=0", "trainer.batch_size=16")
    trainer = Trainer(config, [reach_store], tmp_path, evaluator=None)
    width, hidden, chunk = 32, 64, 8
    attention, feedforward = 4 * width**2, 2 * width * hidden
    state = (21 + RELATIVE_DIM + VELOCITY_DIM[True]) * hidden + hidden * width
    encoder = 2 * (attention + feedforward)
    decoder = 2 * 2 * width**2 + (width**2 + feedforward) * chunk
    once = (attention + width**2) * chunk
    mixing = 2 * (4 + 2 * chunk) * width
    by_hand = 3 * 2 * (16 * (state + encoder + decoder + 4 * width * chunk + mixing) + once)
    assert trainer.learner.dry_run() == pytest.approx(by_hand, rel=0.1)


@pytest.mark.parametrize("value", [50.0, math.nan])
def test_a_diverging_loss_stops_the_run_and_keeps_the_last_checkpoint(
    reach_store: EpisodeStore, tmp_path: Path, value: float
) -> None:
    def explode(trainer: Trainer) -> None:
        if trainer.step == 45:
            with torch.no_grad():
                trainer.learner.model.get_parameter("action_out.bias").fill_(value)

    with pytest.raises(TrainingError, match=r"diverged: .*at step 50. The last checkpoint is from before"):
        Trainer(tiny_config(), [reach_store], tmp_path, evaluator=None).train(explode)
    assert Policy.load(tmp_path).metadata.step == 40


@pytest.mark.gl
def test_images_on_the_device_and_on_disk_give_the_same_bits(images_store: EpisodeStore, tmp_path: Path) -> None:
    for storage, description in (("device", ": kept on the device"), ("disk", ": read from disk")):
        config = tiny_config(*IMAGES, *SHORT, f"compute.image_storage={storage}")
        trainer = fit(config, tmp_path / storage, images_store)
        assert description in trainer.summary()
    assert curve(tmp_path / "device") == curve(tmp_path / "disk")


@pytest.mark.gl
def test_images_are_shifted_in_training_and_not_in_validation(images_store: EpisodeStore, tmp_path: Path) -> None:
    for shift in (0, 4):
        fit(tiny_config(*IMAGES, *SHORT, f"trainer.shift_px={shift}"), tmp_path / str(shift), images_store)
    assert curve(tmp_path / "0") != curve(tmp_path / "4")
    config = tiny_config(*IMAGES, "policy.cameras=[topview,corner4]")
    learner = fit(config, tmp_path / "both", images_store).learner
    assert learner.validate() == learner.validate()
    assert curve(tmp_path / "both")[-1] < curve(tmp_path / "both")[0]


@pytest.mark.gl
def test_an_image_policy_records_its_cameras_and_renderer(images_store: EpisodeStore, tmp_path: Path) -> None:
    fit(tiny_config(*IMAGES, *SHORT), tmp_path / "run", images_store)
    policy = Policy.load(tmp_path / "run")
    assert policy.views is not None
    assert (policy.views.cameras, str(policy.views.settings)) == (("corner4",), "32x32")
    assert policy.metadata.gl_renderer
    assert not policy.metadata.goal_visible


def test_several_tasks_are_learned_and_distinguished(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vectors = {"reach-v3": torch.randn(48), "push-v3": torch.randn(48), "other": torch.randn(3)}
    save_file(vectors, tmp_path / "sentences.safetensors")
    for name, given in (("learned", ""), ("given", str(tmp_path / "sentences.safetensors"))):
        fit(tiny_config(*SHORT, f"policy.task_embeddings={given}"), tmp_path / name, reach_store, push_store)
        policy = Policy.load(tmp_path / name)
        assert policy.tasks == ("reach-v3", "push-v3")
        state = reach_store.steps("state")[:1]
        reach, push = (policy.for_task(task).predict(state) for task in policy.tasks)
        assert abs(reach - push).max() > 1e-4
    assert curve(tmp_path / "learned") != curve(tmp_path / "given")
    (tmp_path / "sentences.safetensors").unlink()
    Policy.load(tmp_path / "given")  # a checkpoint contains its embeddings
    del vectors["push-v3"]
    save_file(vectors, tmp_path / "sentences.safetensors")
    config = tiny_config(*SHORT, f"policy.task_embeddings={tmp_path / 'sentences.safetensors'}")
    with pytest.raises(ConfigError, match="has no vector named push-v3; it has other, reach-v3"):
        fit(config, tmp_path / "missing", reach_store, push_store)


@pytest.mark.slow  # a minute of compilation
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of PyTorch itself
def test_a_compiled_step_is_the_same_step(reach_store: EpisodeStore, tmp_path: Path) -> None:
    for choice in ("off", "on"):
        fit(tiny_config(*SHORT, f"compute.compile={choice}"), tmp_path / choice, reach_store)
    assert curve(tmp_path / "off") == pytest.approx(curve(tmp_path / "on"), rel=1e-3)


def test_records_contain_the_memory_of_the_process(reach_store: EpisodeStore, tmp_path: Path) -> None:
    fit(tiny_config(*SHORT), tmp_path, reach_store)
    (memory, *_) = curve(tmp_path, "host/memory")
    assert 0.1 < memory < 10
    assert "device/memory" not in json.dumps((tmp_path / "metrics.jsonl").read_text())


@pytest.mark.gl
def test_a_backbone_is_initialized_from_a_file_and_keeps_its_statistics(
    images_store: EpisodeStore, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    weights = ResNet18(FrozenBatchNorm2d).state_dict()
    weights["bn1.running_mean"].normal_()
    torch.save(weights, tmp_path / "resnet18.pth")
    options = ("policy.backbone=resnet18", f"policy.backbone_weights={tmp_path / 'resnet18.pth'}", "trainer.lr=1e-4")
    trainer = Trainer(tiny_config(*IMAGES, *SHORT, *options), [images_store], tmp_path, evaluator=None)
    net = trainer.learner.model.get_submodule("vision.net")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in weights.items())
    trainer.train()
    assert torch.equal(net.state_dict()["bn1.running_mean"], weights["bn1.running_mean"])
    assert not torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"])
    (tmp_path / "resnet18.pth").unlink()
    Policy.load(tmp_path)  # a checkpoint contains its weights
