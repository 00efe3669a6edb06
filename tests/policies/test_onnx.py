"""The ONNX export: onnxruntime acts as the policy does, for every kind of model, or there is an error and no file."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import act_kit
import examples.custom_head  # noqa: F401, registers its model
from act_kit.config.policy import PolicyConfig
from act_kit.config.training import TrainConfig
from act_kit.errors import ActKitError, ConfigError, ExportError, OutputError
from act_kit.overrides import compose
from act_kit.policies.chunk_model import ChunkModel, Observation, make_model, register_model
from act_kit.policies.metadata import PolicyMetadata, TrainingDataset
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.sim.render import CameraViews, RenderSettings
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM
from examples.onnx_policy import OnnxAgent
from tests.conftest import ONE_THREAD, TINY, act

TASKS = ("reach-v3", "push-v3", "drawer-close-v3")

LINEAR = ("policy.name=linear", "policy.chunk_size=8")

CAMERAS = "policy.cameras=[corner4,gripperPOV]"

MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "a CVAE, several tasks": (3, ()),
    "no CVAE, no features, two layers": (
        1,
        (
            "policy.cvae_layers=0",
            "policy.encoder_layers=2",
            "policy.relative_positions=false",
            "policy.velocities=false",
        ),
    ),
    "given task embeddings": (3, ("policy.task_embeddings=sentences.safetensors",)),
    "a small image encoder": (1, ("policy.inputs=image+proprio", CAMERAS, "policy.backbone=small")),
    "keypoints, several tasks": (
        3,
        (
            "policy.inputs=image+proprio",
            "policy.cameras=[corner4,topview]",
            "policy.backbone=keypoints",
            "trainer.shift_px=0",
        ),
    ),
    "a ResNet": (1, ("policy.inputs=image+state", CAMERAS, "policy.cvae_layers=0")),
    "a pretrained ResNet, several tasks": (
        3,
        ("policy.inputs=image+proprio", "policy.cameras=[corner4]", "policy.backbone_weights=resnet18.pth"),
    ),
    "a linear model, several tasks": (3, LINEAR),
    "flow matching": (1, ("policy=flow_small", "policy.dim_model=32", "policy.flow_steps=3")),
    "a minimal iterative policy, several tasks": (3, ("policy=mip_small", "policy.dim_model=32")),
}
"""Number of tasks and overrides of models; the one of ``tiny_run`` is a CVAE of one task."""


def observations(policy: Policy, num: int) -> dict[str, np.ndarray]:
    """Return arguments of ``policy.predict``."""
    rng = np.random.default_rng(num)
    drawn: dict[str, np.ndarray] = {
        "states": rng.uniform(-0.5, 0.5, (num, STATE_DIM)),
        "tasks": rng.integers(0, len(policy.tasks), num),
    }
    if policy.views:
        settings = policy.views.settings
        shape = (num, len(policy.views.cameras), settings.height_px, settings.width_px, 3)
        drawn["images"] = rng.integers(0, 256, shape, dtype=np.uint8)
    return drawn


def save_untrained(folder: Path, overrides: Sequence[str], num_tasks: int = 1) -> Policy:
    """Save an untrained policy, whose actions often exceed [-1, 1], with a self-test batch."""
    is_act = not any(override.startswith(("policy.name=", "policy=")) for override in overrides)
    config = compose(TrainConfig, [*(TINY if is_act else ()), *overrides])
    views = None
    if config.policy.cameras:
        views = CameraViews(cameras=config.policy.cameras, settings=RenderSettings(height_px=48, width_px=32))
    metadata = PolicyMetadata(
        datasets=[TrainingDataset(task=task, fingerprint="", command="", init_states=[]) for task in TASKS[:num_tasks]],
        horizon=500,
        control_hz=80,
        versions={"act_kit": "0.0.1"},
        step=7,
        goal_visible=True,
        views=views,
        gl_renderer="llvmpipe" if views else "",
    )
    torch.manual_seed(0)
    embeddings = torch.randn(num_tasks, 12) if config.policy.task_embeddings else None
    model, normalizer = make_model(config.policy, num_tasks=num_tasks, task_embeddings_NE=embeddings), Normalizer(39)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(4)
    normalizer.fit(torch.rand(100, STATE_DIM) * torch.arange(STATE_DIM).clamp(max=2))  # the first number is constant
    policy = Policy(model, normalizer, metadata, config.chunking)
    folder.mkdir()
    policy.save(folder, observations(policy, 5))
    return policy


def run_onnx(path: Path, policy: Policy, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return clipped and unclipped actions for arguments of ``policy.predict``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {**given, "states": given["states"].astype(np.float32)}
    if len(policy.tasks) == 1:
        del inputs["tasks"]
    assert [each.name for each in session.get_inputs()] == list(inputs)
    actions, unclipped = session.run(["actions", "unclipped_actions"], inputs)
    assert actions.dtype == unclipped.dtype == np.float32
    return actions, unclipped


def check_sameness(path: Path, policy: Policy, sizes: Sequence[int] = (1, 7, 64)) -> None:
    """Assert that onnxruntime predicts what the policy predicts, for several numbers of rows."""
    clipped = 0.0
    for num in sizes:
        given = observations(policy, num)
        expected = policy.predict(**given)
        actions, unclipped = run_onnx(path, policy, given)
        assert actions.shape == (num, policy.chunk_size, ACTION_DIM)
        assert np.abs(unclipped - expected).max() <= 1e-4
        assert np.abs(actions - expected.clip(-1, 1)).max() <= 1e-4
        clipped = max(clipped, float((np.abs(expected) > 1).mean()))
    assert clipped < 1


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a trained policy."""
    return act_kit.export(tiny_run, tmp_path_factory.mktemp("onnx") / "policy.onnx")


def test_the_file_predicts_as_the_policy_and_describes_itself(exported: Path, tiny_run: Path) -> None:
    policy = Policy.load(tiny_run)
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    shapes: dict[str, list[int | str]] = {}
    for value in [*model.graph.input, *model.graph.output]:
        shapes[value.name] = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    chunk: list[int | str] = ["batch", 8, 4]
    assert shapes == {"states": ["batch", 39], "actions": chunk, "unclipped_actions": chunk}
    (entry,) = model.metadata_props
    described = json.loads(entry.value)
    assert entry.key == "act_kit"
    assert described["tasks"] == ["reach-v3"]
    assert (described["chunk_size"], described["n_action_steps"], described["temporal_ensemble"]) == (8, 4, False)
    assert (described["control_hz"], described["horizon"], described["goal_visible"]) == (80, 500, True)
    assert (described["cameras"], described["rendering"]) == ([], None)
    assert described["fingerprint"] == policy.weights_hash
    assert described["act_kit"] == policy.metadata.versions["act_kit"]
    check_sameness(exported, policy)
    assert str(Path(act_kit.__file__).parent).encode() not in exported.read_bytes(), "no path of this machine"


def test_a_rollout_in_onnxruntime_ends_as_that_of_the_policy(exported: Path, tiny_run: Path) -> None:
    options: dict[str, Any] = {
        "episodes": 6,
        "overrides": ["baseline_episodes=0", "demonstrated_episodes=0"],
        "workers": 1,
    }
    expected = act_kit.evaluate(Policy.load(tiny_run), "reach-v3", **options).episodes
    episodes = act_kit.evaluate(OnnxAgent(exported), "reach-v3", **options).episodes
    assert [each.success_step for each in episodes] == [each.success_step for each in expected]
    assert {each.success_step is None for each in expected} == {True, False}, "some episodes succeed, some fail"
    distances = [each.final_distance for each in expected]
    assert [each.final_distance for each in episodes] == pytest.approx(distances, abs=1e-3)


def test_wrong_observations_are_refused(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"Invalid rank for input: states|invalid dimensions for input: states"):
        session.run(None, {"states": np.zeros((1, 38), np.float32)})
    with pytest.raises(Exception, match=r"Actual: \(tensor\(double\)\) , expected: \(tensor\(float\)\)"):
        session.run(None, {"states": np.zeros((1, 39))})


@pytest.mark.e2e
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_predicts_as_the_policy(name: str, tmp_path: Path) -> None:
    num_tasks, overrides = MODELS[name]
    policy = save_untrained(tmp_path / "checkpoint", overrides, num_tasks)
    path = act_kit.export(tmp_path / "checkpoint")
    assert path == tmp_path / "checkpoint" / "policy.onnx"
    check_sameness(path, policy)
    if num_tasks > 1:
        check_tasks(path, policy)


def check_tasks(path: Path, policy: Policy) -> None:
    """Assert that an unknown task is refused, and that a known one matters, except to the linear model."""
    given = observations(policy, 3)
    for task in (3, -1):
        unknown = {**given, "tasks": np.array([0, 1, task])}
        if policy.model.config.name != "linear":
            with pytest.raises(Exception, match=r"out of data bounds|invalid index"):
                run_onnx(path, policy, unknown)
    given = {name: np.repeat(values[:1], 3, axis=0) for name, values in given.items()}
    actions = run_onnx(path, policy, {**given, "tasks": np.arange(3)})[1]
    assert len(np.unique(actions[:, 0, 0])) == (3 if policy.model.config.name != "linear" else 1)


def test_the_metadata_describe_tasks_images_and_ensembling(tmp_path: Path) -> None:
    overrides = ("policy.inputs=image+proprio", CAMERAS, "chunking.temporal_ensemble=true")
    policy = save_untrained(tmp_path / "checkpoint", (*LINEAR, *overrides), 3)
    path = act_kit.export(tmp_path / "checkpoint")
    check_sameness(path, policy)
    agent = OnnxAgent(path)
    assert agent.tasks == list(TASKS)
    assert agent.views == policy.views
    rotated = {"corner4": True, "gripperPOV": False}
    assert {camera["name"]: camera["rotated_180"] for camera in agent.metadata["cameras"]} == rotated
    assert [camera["part"] for camera in agent.metadata["cameras"]] == [None, None], "the fast look shows all"
    assert (agent.metadata["temporal_ensemble"], agent.metadata["gl_renderer"]) == (True, "llvmpipe")
    assert agent.metadata["trained_with"] == {"act_kit": "0.0.1"}


# -- refusals: an error, and no file -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BranchingConfig(PolicyConfig):
    name: str = "branching"
    kind: str = ""


@register_model(BranchingConfig)
class BranchingModel(ChunkModel):
    """Model that ONNX cannot express, in several ways."""

    config: BranchingConfig

    def __init__(self, config: PolicyConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        super().__init__(config)
        self.linear = nn.Linear(STATE_DIM, config.chunk_size * ACTION_DIM)

    def predict(self, observation: Observation) -> Tensor:
        flat = self.linear(observation.states_BS)
        if self.config.kind == "branch" and flat.sum() > 0:
            flat = -flat
        if self.config.kind == "loop":
            flat = torch.stack([self.linear(state) for state in observation.states_BS])
        if self.config.kind == "operator":
            flat = flat * torch.linalg.qr(flat[:, :, None].expand(-1, -1, 2))[1][:, :1, 0]
        if self.config.kind == "mode" and torch.compiler.is_compiling():
            flat = flat + 1
        return flat.unflatten(1, (-1, ACTION_DIM))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", r"Data-dependent branching, .*test_onnx\.py:\d+\. Expected: a predict\(\) that torch.export can"),
        ("loop", r"it has a fixed number of rows, .*test_onnx\.py:\d+\."),
        ("operator", r"No ONNX function found for .*linalg_qr.* Fix: change predict\(\) of tests.*BranchingModel"),
        ("mode", r"differ by 1 in onnxruntime .* \(allowed: 0\.0001\)"),
    ],
    ids=["branch", "loop", "operator", "mode"],
)
def test_a_model_that_cannot_be_exported_is_one_line_and_leaves_no_file(
    kind: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_untrained(tmp_path / "checkpoint", ["policy.name=branching", f"policy.kind={kind}"])
    with pytest.raises(ExportError, match=message) as error:
        act_kit.export(tmp_path / "checkpoint", tmp_path / "new" / "policy.onnx")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", ""), "PyTorch prints nothing"
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]


def test_outputs_are_not_replaced_without_permission(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"is a folder\. Fix: name a file, such as --out .*policy\.onnx"):
        act_kit.export(tiny_run, tmp_path)
    with pytest.raises(OutputError, match=r"exists\. Fix: --overwrite replaces it, or choose another --out"):
        act_kit.export(tiny_run, mine)
    with pytest.raises(OutputError, match="was not made by act export, so --overwrite does not replace it"):
        act_kit.export(tiny_run, mine, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        act_kit.export(tiny_run, mine / "policy.onnx")
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(exported)
    del model.metadata_props[:]
    foreign.write_bytes(model.SerializeToString())
    with pytest.raises(OutputError, match="was not made by act export"):
        act_kit.export(tiny_run, foreign, overwrite=True)
    assert mine.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [foreign, mine]


def test_missing_packages_are_named_with_their_extra(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("act_kit.api.export.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"needs onnxscript, of the extra 'onnx', .* Fix: pip install"):
        act_kit.export(tiny_run, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_policy_is_refused(reach_store: Any, tmp_path: Path) -> None:
    with pytest.raises(ActKitError, match="is a dataset, not a run"):
        act_kit.export(reach_store.path, tmp_path / "policy.onnx")
    with pytest.raises(ActKitError, match="There is no trained policy at"):
        act_kit.export(tmp_path / "nothing", tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_and_a_link_to_it_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_untrained(tmp_path / "checkpoint", LINEAR)
    link = tmp_path / "link.onnx"
    link.symlink_to("policy.onnx")
    act_kit.export(tmp_path / "checkpoint", link)
    before = (tmp_path / "policy.onnx").read_bytes()
    model = onnx.load(link)
    model.doc_string = "old"
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())
    with caplog.at_level("INFO", "act_kit"):
        act_kit.export(tmp_path / "checkpoint", link, overwrite=True)
    assert re.search(r"onnxruntime reproduces the self-test within \S+ \(allowed: 0.0001\)", caplog.text)
    assert link.is_symlink()
    assert (tmp_path / "policy.onnx").read_bytes() == before, "the same policy, the same bytes"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "checkpoint", link, tmp_path / "policy.onnx"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_untrained(tmp_path / "checkpoint", LINEAR)

    def fill(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left"):
        act_kit.export(tmp_path / "checkpoint", tmp_path / "new" / "policy.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]


SLOW_WRITE = """
import pathlib, time
write = pathlib.Path.write_bytes
def write_half(path, content):
    write(path, content[: len(content) // 2])
    time.sleep(60)
pathlib.Path.write_bytes = write_half
"""


@pytest.mark.e2e
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_export_leaves_nothing(
    kill: signal.Signals, exported: Path, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy.onnx").write_bytes(exported.read_bytes())
    program = f"{SLOW_WRITE}\nfrom act_kit.cli import main\nmain()"
    command = [sys.executable, "-c", program, "export", str(tiny_run), "--overwrite"]
    command += ["--out", str(tmp_path / "policy.onnx")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ONE_THREAD, text=True) as killed:
        half = tmp_path / ".policy.onnx.act-new" / "policy.onnx"
        while not half.exists() and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(kill)
        _, err = killed.communicate(timeout=60)
    if kill == signal.SIGKILL:  # nothing can run; the next export deletes what it left
        assert half.exists()
        done = act("export", tiny_run, "--out", tmp_path / "policy.onnx", "--overwrite", check=0)
        assert (f"{tmp_path / 'policy.onnx'}: 0.1 MB" in done.stdout, done.stderr) == (True, "")
    else:
        assert (killed.returncode, err) == (130, "Stopped.\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "policy.onnx"]
    assert (tmp_path / "policy.onnx").read_bytes() == exported.read_bytes()
