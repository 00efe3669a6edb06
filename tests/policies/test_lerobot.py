"""LeRobot policies as agents; lerobot itself is replaced, because it needs other versions of what act_kit needs.

``benchmarks/lerobot_loop.py`` compares with lerobot.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from act_kit.api.agents import kind_of_agent, load_lerobot
from act_kit.api.diagnose import diagnose
from act_kit.config.evaluation import ServedConfig
from act_kit.errors import CheckpointError, ConfigError
from act_kit.policies.lerobot import LeRobotAgent, choose_inputs
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, RenderSettings
from act_kit.sim.vector import VectorSimulator

CHUNK = 6


def features(**shapes: tuple[int, ...]) -> dict[str, Any]:
    names = {"state": "observation.state", "environment": "observation.environment_state"}
    return {names.get(name, name): {"type": "STATE", "shape": list(shape)} for name, shape in shapes.items()}


CONFIG: dict[str, Any] = {
    "type": "act",
    "input_features": features(state=(4,), environment=(35,)),
    "output_features": features(action=(4,)),
}
PROCESSOR: dict[str, Any] = {"steps": [{"registry_name": "normalizer_processor"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a policy that lerobot 0.4 wrote."""
    write(tmp_path, "config.json", CONFIG)
    write(tmp_path, "policy_preprocessor.json", PROCESSOR)
    write(tmp_path, "policy_postprocessor.json", PROCESSOR)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def write(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


class Policy:
    """A policy of LeRobot's interface: the chunk counts from a number that is a function of the observation alone."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._queues: dict[str, object] = {"action": object()}
        self.batches: list[dict[str, Any]] = []

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        self.batches.append(batch)
        hand, goal = batch["observation.state"][:, :3], batch["observation.environment_state"][:, -3:]
        first = torch.cat([goal - hand, hand[:, :1]], dim=1)
        return first[:, None] + 0.01 * torch.arange(CHUNK)[:, None]


class Registry:
    """Stands for lerobot's configurations."""

    kinds = ("act", "diffusion")
    config: Any = None

    @classmethod
    def get_known_choices(cls) -> dict[str, None]:
        return dict.fromkeys(cls.kinds)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Any:
        return cls.config


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put modules with lerobot's names and signatures in its place; return the configuration that it will read."""
    config = SimpleNamespace(n_obs_steps=1, chunk_size=CHUNK, n_action_steps=4, pretrained_backbone_weights="IMAGENET")
    monkeypatch.setattr(Registry, "config", config)
    names = ("lerobot", "lerobot.configs", "lerobot.configs.policies", "lerobot.policies", "lerobot.policies.factory")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def load(folder: Path, *, config: Any, strict: bool) -> Policy:
        assert strict
        assert config.pretrained_backbone_weights is None, "nothing is downloaded"
        return Policy(config)

    def make_processors(config: Any, folder: str, preprocessor_overrides: dict[str, Any]) -> Any:
        assert preprocessor_overrides == {"device_processor": {"device": "cpu"}}
        return (lambda batch: batch), (lambda actions: actions * 2)

    vars(modules["lerobot"])["__version__"] = "0.4.4"
    vars(modules["lerobot.configs.policies"])["PreTrainedConfig"] = Registry
    factory = vars(modules["lerobot.policies.factory"])
    factory["get_policy_class"] = lambda kind: SimpleNamespace(from_pretrained=load)
    factory["make_pre_post_processors"] = make_processors
    return config


def sample(num: int) -> list[InitialState]:
    return InitialStateDistribution("reach-v3").sample(num, seed=0, stream="evaluate")


def test_environments_execute_their_own_actions(folder: Path, lerobot: SimpleNamespace) -> None:
    """Together as alone, also where the episodes of other environments begin and end in between."""
    init_states = sample(3)
    with VectorSimulator(0) as simulators:
        together = rollout(simulators, LeRobotAgent(folder), init_states, num_envs=2, steps_after_success=3)
        for init_state, episode in zip(init_states, together, strict=True):
            (alone,) = rollout(simulators, LeRobotAgent(folder), [init_state], steps_after_success=3)
            assert np.array_equal(alone.executed_action, episode.executed_action)
            assert episode.query_steps is not None
            assert np.array_equal(np.diff(episode.query_steps), [4] * (len(episode.query_steps) - 1))


def test_the_policy_is_shown_states_and_prompts_and_its_actions_are_postprocessed(
    folder: Path, lerobot: SimpleNamespace
) -> None:
    agent = LeRobotAgent(folder, n_action_steps=2)
    states = np.arange(2 * 39, dtype=np.float64).reshape(2, 39)
    for row, init_state in zip([7, 3], sample(2), strict=True):
        agent.begin(row, init_state, 0)
    actions = agent.plan(states, np.array([7, 3]), None)
    (batch,) = agent._policy.batches
    assert batch["task"] == ["Reach a goal position"] * 2
    assert np.array_equal(batch["observation.state"], states[:, :4])
    assert np.array_equal(batch["observation.environment_state"], states[:, 4:])
    assert np.allclose(actions[:, 0, :3], 2 * (states[:, -3:] - states[:, :3]))
    assert np.allclose(actions[:, 1] - actions[:, 0], 0.02, atol=1e-4)
    assert actions.shape == (2, 2, 4)
    assert {task: len(each) for task, each in agent.latencies_s.items()} == {"reach-v3": 1}
    assert agent.provenance
    assert agent.provenance | {"weights_sha256": "", "shown": {}} == {
        "kind": "lerobot",
        "name": str(folder),
        "type": "act",
        "weights_sha256": "",
        "lerobot": "0.4.4",
        "n_action_steps": 2,
        "temporal_ensemble_coeff": None,
        "shown": {},
    }
    assert "which is shown observation.state, observation.environment_state" in repr(agent)


def test_temporal_ensembling_is_by_environment(folder: Path, lerobot: SimpleNamespace) -> None:
    """LeRobot's is one average for all environments, of which one that begins later would spoil the others."""
    lerobot.temporal_ensemble_coeff, lerobot.n_action_steps = 0.01, 1
    init_states = sample(2)
    with VectorSimulator(0) as simulators:
        together = rollout(simulators, LeRobotAgent(folder), init_states, num_envs=2, steps_after_success=3)
        (alone,) = rollout(simulators, LeRobotAgent(folder), [init_states[1]], steps_after_success=3)
    assert np.array_equal(together[1].executed_action, alone.executed_action)
    assert len(alone.query_steps) == len(alone)
    with pytest.raises(ConfigError, match=r"averages overlapping chunks at every step. Fix: leave it out"):
        LeRobotAgent(folder, n_action_steps=2)


def test_images_get_a_camera_a_size_and_a_look(tmp_path: Path) -> None:
    def views(config: ServedConfig, **images: tuple[int, ...]) -> CameraViews | None:
        named = {f"observation.{name.replace('__', '.')}": shape for name, shape in images.items()}
        values = {**CONFIG, "input_features": features(state=(4,), **named)}
        return choose_inputs(values, tmp_path, config).views

    size = (3, 480, 480)
    look = RenderSettings(height_px=480, width_px=480, look="lerobot")
    assert views(ServedConfig(look="lerobot"), image=size) == CameraViews(cameras=("corner2",), settings=look)
    named = views(ServedConfig(), images__corner4=size, images__gripperPOV=size, images__empty_camera_0=size)
    assert named
    assert named.cameras == ("corner4", "gripperPOV")
    given = views(ServedConfig(cameras=("topview",)), images__front=(3, 64, 96))
    assert given
    assert (given.cameras, str(given.settings)) == (("topview",), "64x96")
    assert views(ServedConfig()) is None
    with pytest.raises(ConfigError, match=r"expected a camera for each, not corner2, corner2. Fix: served.cameras="):
        views(ServedConfig(), images__left=size, images__right=size)
    with pytest.raises(ConfigError, match="acts on states only"):
        views(ServedConfig(cameras=("topview",)))
    with pytest.raises(CheckpointError, match=r"expected images \(3, H, W\) of one size"):
        views(ServedConfig(), images__corner=size, images__corner2=(3, 64, 64))


def test_images_are_shown_as_lerobot_shows_them(folder: Path, lerobot: SimpleNamespace) -> None:
    images = features(**{"observation.image": (3, 32, 48)})
    write(folder, "config.json", {**CONFIG, "input_features": {**CONFIG["input_features"], **images}})
    agent = LeRobotAgent(folder)
    agent.begin(0, sample(1)[0], 0)
    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 48, 3), dtype=np.uint8)
    agent.plan(np.zeros((1, 39)), np.array([0]), frames)
    shown = agent._policy.batches[0]["observation.image"]
    assert shown.dtype == torch.float32
    assert np.array_equal(shown[0].numpy(), frames[0, 0].transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", None, r"has no config.json: expected a pretrained LeRobot policy. Fix: name its folder"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("policy_preprocessor.json", None, r"lerobot before 0.4 .* Fix: python -m lerobot.processor.migrate_policy"),
        ("policy_postprocessor.json", {"steps": [{"class": "os.system"}]}, r"has the step 'os.system': expected one"),
        ("policy_postprocessor.json", [], "has no list of steps"),
        ("config.json", {"steps": []}, "names no type of policy"),
        ("config.json", {**CONFIG, "type": "actt"}, r"has no policy of type 'actt'.*Did you mean 'act'\?"),
        ("config.json", {**CONFIG, "input_features": 3}, "input_features are not shapes by name"),
        ("config.json", {**CONFIG, "input_features": features(state=(6,))}, r"needs observation.state of shape \(6,\)"),
        ("config.json", {**CONFIG, "output_features": features(action=(7,))}, r"actions of shape \(7,\): expected"),
    ],
)
def test_folders_that_cannot_be_evaluated(
    folder: Path, lerobot: SimpleNamespace, name: str, values: Any, message: str
) -> None:
    (folder / name).unlink()
    if values is not None:
        write(folder, name, values)
    with pytest.raises(CheckpointError, match=message):
        LeRobotAgent(folder)


@pytest.mark.parametrize(("sign", "expected"), [(1, ""), (-1, "action axes turned or exchanged")])
def test_the_doctor_examines_a_lerobot_policy(
    folder: Path, lerobot: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sign: int, expected: str
) -> None:
    def predict(self: Policy, batch: dict[str, Any]) -> Tensor:
        offset = batch["observation.environment_state"][:, -3:] - batch["observation.state"][:, :3]
        first = torch.cat([sign * offset[:, :1], offset[:, 1:], 0 * offset[:, :1]], dim=1)
        return 2.5 * first[:, None].repeat(1, CHUNK, 1)  # doubled by the post-processor

    monkeypatch.setattr(Policy, "predict_action_chunk", predict)
    (diagnosis,) = diagnose(f"lerobot:{folder}", "reach-v3", n_action_steps=1, workers=1)
    found = [finding.name for finding in diagnosis.findings if finding.result.is_fault]
    assert found[:1] == ([expected] if expected else []), diagnosis
    assert diagnosis.name == f"{folder}, reach-v3"


def test_policies_that_keep_past_observations_are_refused(folder: Path, lerobot: SimpleNamespace) -> None:
    lerobot.n_obs_steps = 2
    with pytest.raises(CheckpointError, match="keeps past observations"):
        LeRobotAgent(folder)
    lerobot.n_obs_steps = 1
    with pytest.raises(ConfigError, match=f"predicts {CHUNK} actions at once"):
        LeRobotAgent(folder, n_action_steps=CHUNK + 1)


def test_without_lerobot_the_error_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    what = f"lerobot:{folder}"
    assert kind_of_agent(what) == "lerobot"
    with pytest.raises(ConfigError, match=r"LeRobot policies need lerobot 0.4 in this environment .* Fix: pip install"):
        load_lerobot(what, ServedConfig(), n_action_steps=None, device="cpu")
