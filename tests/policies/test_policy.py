"""Policies on disk and at inference: complete loading or an error, raw states, the benchmark's protocol."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError, CheckpointError, ConfigError
from act_kit.policies.chunk_model import Observation
from act_kit.policies.policy import Policy
from act_kit.policies.query_blocks import QUERY_BATCH_SIZE


@pytest.fixture
def checkpoint(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "checkpoints" / "last", tmp_path / "checkpoint"))


def edit(checkpoint: Path, change: object) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, checkpoint / "model.safetensors")


def test_missing_tensors_are_named_and_counted(checkpoint: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        decoder = [name for name in tensors if name.startswith("model.decoder")]
        for name in decoder[:24]:
            del tensors[name]

    edit(checkpoint, drop)
    with pytest.raises(CheckpointError, match=r"of \d+ tensors can be loaded. Missing: \['model.decoder"):
        Policy.load(checkpoint)


def test_an_unknown_tensor_and_a_wrong_shape_are_named(checkpoint: Path) -> None:
    edit(checkpoint, lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"unknown: \['model.extra'\]"):
        Policy.load(checkpoint)
    edit(checkpoint, lambda t: (t.pop("model.extra"), t.update({"model.queries": torch.zeros(3, 3)})))
    with pytest.raises(CheckpointError, match=r"of another shape: \['model.queries'\]"):
        Policy.load(checkpoint)


@pytest.mark.parametrize("name", ["normalizer.mean", "normalizer.std", "model.action_out.weight"])
def test_a_changed_normalizer_or_weight_fails_the_self_test(checkpoint: Path, name: str) -> None:
    edit(checkpoint, lambda tensors: tensors.update({name: tensors[name] * 1.5 + 0.1}))
    with pytest.raises(CheckpointError, match="does not reproduce the predictions it was saved with"):
        Policy.load(checkpoint)


def test_truncated_and_missing_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)
    (checkpoint / "policy.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)
    with pytest.raises(CheckpointError, match=r"There is no trained policy at .*act train"):
        Policy.load(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["format", "policy", "chunking", "metadata"])
def test_a_description_that_lacks_a_part_is_refused(checkpoint: Path, key: str) -> None:
    description = json.loads((checkpoint / "policy.json").read_text())
    without = {k: v for k, v in description.items() if k != key}
    wrong: tuple[object, ...] = (without, {**description, key: []}, [])
    for damaged in wrong:
        (checkpoint / "policy.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError):
            Policy.load(checkpoint)


def edit_json(checkpoint: Path, part: str, **changes: object) -> None:
    path = checkpoint / "policy.json"
    description = json.loads(path.read_text())
    description[part].update(changes)
    path.write_text(json.dumps(description))


SIZES = (
    "encoder_layers",
    "decoder_layers",
    "cvae_layers",
    "dim_model",
    "dim_feedforward",
    "latent_dim",
    "num_heads",
)
DATA = {"task": "reach-v3", "fingerprint": "", "command": "", "init_states": []}
INVALID: list[tuple[str, str, object]] = [
    ("policy", "name", "flow"),
    ("policy", "name", None),
    ("policy", "chunk_size", 500),
    ("policy", "dim_feedforward", 65536),
    ("policy", "encoder_layers", 64),
    ("policy", "cameras", ["corner4"]),
    ("policy", "inputs", "image+state"),
    ("policy", "dropout", float("nan")),
    ("chunking", "n_action_steps", 10**9),
    ("chunking", "temporal_ensemble_coeff", float("inf")),
    ("metadata", "datasets", []),
    ("metadata", "datasets", [{"task": "reach-v3"}]),
    ("metadata", "datasets", [{**DATA, "task": 7}]),
    ("metadata", "datasets", [{**DATA, "init_states": [[1e9] * 5]}]),
    ("metadata", "datasets", [{**DATA, "init_states": [["a"], [[]]]}]),
    ("metadata", "horizon", 10**9),
    ("metadata", "control_hz", "80"),
    ("metadata", "step", -1),
    ("metadata", "goal_visible", "no"),
    ("metadata", "views", {"cameras": ["x"], "settings": {}}),
    ("metadata", "views", {"cameras": ["corner4"], "settings": {"height_px": 10**9}}),
]
for _size in SIZES:
    INVALID += [("policy", _size, value) for value in (100_000, 2**62, 10**400, -1, "4", None, 1.5, True)]


def test_invalid_numbers_are_refused_before_memory_is_allocated(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (checkpoint / "policy.json").read_text()

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("the weights were read before their layout was checked")

    def memory_mb(name: str) -> float:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return int(status[name].split()[0]) / 1024

    # The peak so far is that of other tests: begin again from here.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before_mb = memory_mb("VmRSS")
    monkeypatch.setattr("act_kit.policies.storage.load_file", fail)
    for part, name, value in INVALID:
        edit_json(checkpoint, part, **{name: value})
        with pytest.raises(CheckpointError, match=r"[Tt]he checkpoint .*/checkpoint|predicts 8 actions"):
            Policy.load(checkpoint)
        (checkpoint / "policy.json").write_text(whole)
    assert memory_mb("VmHWM") - before_mb < 500


def test_weights_that_are_not_a_regular_file_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    os.mkfifo(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing or not a regular file"):
        Policy.load(checkpoint)


def test_tensors_of_the_wrong_type_are_named(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: t.update({"model.queries": t["model.queries"].double()}))
    with pytest.raises(CheckpointError, match=r"model.queries is torch.float64, not torch.float32"):
        Policy.load(checkpoint)
    edit(checkpoint, lambda t: t.update({"model.queries": t["model.queries"].half()}))
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)


@pytest.mark.parametrize(
    "changed",
    [
        {"self_test.color": torch.zeros(3)},
        {"self_test.states": torch.full((16, 39), float("nan"))},
        {"self_test.tasks": torch.full((16,), 7)},
        {"self_test.chunks": torch.zeros(1)},
        {"self_test.states": torch.zeros(5000, 39)},
    ],
)
def test_a_damaged_self_test_batch_is_refused(checkpoint: Path, changed: dict[str, torch.Tensor]) -> None:
    edit(checkpoint, lambda tensors: tensors.update(changed))
    with pytest.raises(CheckpointError, match="checkpoint"):
        Policy.load(checkpoint)


def test_auto_picks_a_device_and_an_unknown_device_is_refused(tiny_run: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Policy.load(tiny_run, device="auto").device.type == expected
    with pytest.raises(ConfigError, match="device='gpu': choose from: auto, cpu, cuda"):
        Policy.load(tiny_run, device="gpu")
    with pytest.raises(ConfigError, match="no such GPU"):
        Policy.load(tiny_run, device="cuda:63")


def test_an_unsupported_version_is_named(checkpoint: Path) -> None:
    description = json.loads((checkpoint / "policy.json").read_text())
    (checkpoint / "policy.json").write_text(json.dumps({**description, "version": 9}))
    with pytest.raises(CheckpointError, match="version 9: this act_kit reads"):
        Policy.load(checkpoint)


def test_nothing_is_pickled(tiny_run: Path) -> None:
    files = {file.suffix for file in (tiny_run / "checkpoints").rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}


def test_raw_states_are_normalized_by_the_policy(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[:20]
    raw = torch.from_numpy(states[:16].astype(np.float32))
    tasks = torch.zeros(16, dtype=torch.int64)
    observation = Observation(
        states_BS=tiny_policy.normalizer(raw), raw_states_BS=raw, tasks_B=tasks, images_BCHW3=None
    )
    assert np.array_equal(tiny_policy.predict(states)[:16], tiny_policy.model.predict(observation).detach().numpy())


def test_a_prediction_does_not_depend_on_the_other_rows(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[: 3 * QUERY_BATCH_SIZE["cpu"] + 5]
    together = tiny_policy.predict(states)
    order = np.random.default_rng(0).permutation(len(states))
    assert np.array_equal(tiny_policy.predict(states[order]), together[order])
    assert np.array_equal(np.concatenate([tiny_policy.predict(state[None]) for state in states]), together)


def test_acting_step_by_step_executes_the_plan(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[:8]
    tiny_policy.reset()
    plan = tiny_policy.plan(states[:1], np.array([0]))[0]
    tiny_policy.reset()
    actions = [tiny_policy.act(states[0]) for _ in range(4)]
    assert np.array_equal(np.array(actions), plan)
    assert np.abs(plan).max() <= 1
    fifth = tiny_policy.act(states[5])
    assert np.array_equal(fifth, tiny_policy.plan(states[5:6], np.array([0]))[0, 0])


def test_a_reset_queries_only_that_environment_again(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    before, after = reach_store.steps("state")[[0, 1]], reach_store.steps("state")[[30, 31]]
    tiny_policy.reset()
    plan = tiny_policy.plan(before, np.arange(2))
    tiny_policy.reset()
    tiny_policy.act(before)
    tiny_policy.reset(np.array([True, False]))
    actions = tiny_policy.act(after)
    assert np.array_equal(actions[0], tiny_policy.plan(after[:1], np.array([0]))[0, 0])
    assert np.array_equal(actions[1], plan[1, 1])


def test_hidden_goals_and_wrong_shapes_are_refused(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    hidden = reach_store.steps("state")[:3].copy()
    hidden[:, 36:] = 0
    with pytest.raises(ArrayError, match="hide the goal"):
        tiny_policy.act(hidden)
    with pytest.raises(ArrayError, match=r"expects states \(B, 39\)"):
        tiny_policy.act(np.zeros((2, 7)))


def test_n_action_steps_can_be_changed_up_to_the_chunk_size(tiny_policy: Policy) -> None:
    assert tiny_policy.with_chunking(n_action_steps=2).chunker.actions_per_query == 2
    assert tiny_policy.with_chunking(temporal_ensemble=True).chunker.actions_per_query == 1
    with pytest.raises(CheckpointError, match="predicts 8 actions at once; n_action_steps=9"):
        tiny_policy.with_chunking(n_action_steps=9)


def test_metaworlds_evaluation_accepts_a_policy(tiny_policy: Policy) -> None:
    import metaworld
    from metaworld.evaluation import evaluation

    def make_env(seed: int) -> gym.Env[Any, Any]:
        env = metaworld.make_mt_envs("reach-v3", seed=seed)
        assert isinstance(env, gym.Env)
        return env

    envs = gym.vector.SyncVectorEnv(
        [partial(make_env, seed=seed) for seed in range(2)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    success, mean_return, by_task, returns = evaluation(tiny_policy, envs, num_episodes=2)
    assert set(by_task) == {"reach-v3"}
    assert 0 <= success <= 1
    assert mean_return > 0
    assert len(returns["reach-v3"]) == 2
