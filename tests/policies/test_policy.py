"""A policy on disk and in use: loaded whole or not at all, raw states in, the benchmark's protocol."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError, CheckpointError, ConfigError
from act_kit.policies.act import Observation
from act_kit.policies.policy import QUERY_ROWS, Policy


@pytest.fixture
def checkpoint(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "checkpoints" / "last", tmp_path / "checkpoint"))


def edit(checkpoint: Path, change: object) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, checkpoint / "model.safetensors")


def test_a_missing_tensor_is_named_and_counted(checkpoint: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.decoder")][:24]:
            del tensors[name]

    edit(checkpoint, drop)
    with pytest.raises(CheckpointError, match=r"of \d+ tensors can be loaded. Missing: \['model.decoder"):
        Policy.load(checkpoint)


def test_an_unknown_tensor_and_another_shape_are_named(checkpoint: Path) -> None:
    edit(checkpoint, lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"unknown: \['model.extra'\]"):
        Policy.load(checkpoint)
    edit(checkpoint, lambda t: (t.pop("model.extra"), t.update({"model.queries": torch.zeros(3, 3)})))
    with pytest.raises(CheckpointError, match=r"of another shape: \['model.queries'\]"):
        Policy.load(checkpoint)


@pytest.mark.parametrize("name", ["normaliser.mean", "normaliser.std", "model.action_out.weight"])
def test_a_changed_normaliser_or_weight_is_found_by_the_probe(checkpoint: Path, name: str) -> None:
    edit(checkpoint, lambda tensors: tensors.update({name: tensors[name] * 1.5 + 0.1}))
    with pytest.raises(CheckpointError, match="does not compute what it computed when it was saved"):
        Policy.load(checkpoint)


def test_truncated_and_foreign_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)
    (checkpoint / "policy.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)
    with pytest.raises(CheckpointError, match=r"There is no trained policy at .*act train"):
        Policy.load(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["format", "policy", "chunking", "contract"])
def test_a_description_that_lacks_a_part_is_refused(checkpoint: Path, key: str) -> None:
    description = json.loads((checkpoint / "policy.json").read_text())
    for damaged in ({k: v for k, v in description.items() if k != key}, {**description, key: []}, []):
        (checkpoint / "policy.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError):
            Policy.load(checkpoint)


def edit_json(checkpoint: Path, part: str, **changes: object) -> None:
    path = checkpoint / "policy.json"
    description = json.loads(path.read_text())
    description[part].update(changes)
    path.write_text(json.dumps(description))


SIZES = ("encoder_layers", "decoder_layers", "cvae_layers", "width", "feedforward", "latent_dim", "num_heads")
ABSURD: list[tuple[str, str, object]] = [
    *(
        ("policy", name, value)
        for name in SIZES
        for value in (100_000, 2**62, 10**400, -1, "4", None, 1.5, True)
    ),
    ("policy", "chunk_size", 500), ("policy", "feedforward", 65536), ("policy", "encoder_layers", 64),
    ("policy", "cameras", ["corner4"]), ("policy", "inputs", "image+state"), ("policy", "dropout", float("nan")),
    ("chunking", "n_action_steps", 10**9), ("chunking", "temporal_ensemble_coeff", float("inf")),
    ("contract", "demonstrations", []), ("contract", "demonstrations", [{"task": "reach-v3"}]),
    ("contract", "demonstrations", [{"task": 7, "fingerprint": "", "command": "", "init_states": []}]),
    ("contract", "demonstrations", [{"task": "reach-v3", "fingerprint": "", "command": "", "init_states": [[1e9] * 5]}]),
    ("contract", "demonstrations", [{"task": "reach-v3", "fingerprint": "", "command": "", "init_states": [["a"], [[]]]}]),
    ("contract", "horizon", 10**9), ("contract", "control_hz", "80"), ("contract", "step", -1),
    ("contract", "goal_visible", "no"), ("contract", "views", {"cameras": ["x"], "settings": {}}),
    ("contract", "views", {"cameras": ["corner4"], "settings": {"height_px": 10**9}}),
]  # fmt: skip


def test_numbers_that_cannot_be_take_no_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (checkpoint / "policy.json").read_text()

    def too_much(*arguments: object, **options: object) -> None:
        raise AssertionError("the weights were read before it was known whether they fit")

    monkeypatch.setattr("act_kit.policies.policy.load_file", too_much)
    for part, name, value in ABSURD:
        edit_json(checkpoint, part, **{name: value})
        with pytest.raises(CheckpointError, match=r"[Tt]he checkpoint .*/checkpoint|predicts 8 actions"):
            Policy.load(checkpoint)
        (checkpoint / "policy.json").write_text(whole)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert peak_mb < 2000


def test_a_file_of_weights_that_is_no_file_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    os.mkfifo(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing, or no regular file"):
        Policy.load(checkpoint)


def test_tensors_of_another_type_are_named(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: t.update({"model.queries": t["model.queries"].double()}))
    with pytest.raises(CheckpointError, match=r"model.queries is torch.float64, not torch.float32"):
        Policy.load(checkpoint)
    edit(checkpoint, lambda t: t.update({"model.queries": t["model.queries"].half()}))
    with pytest.raises(CheckpointError, match="is damaged"):
        Policy.load(checkpoint)


@pytest.mark.parametrize("change", [
    lambda t: t.update({"probe.colour": torch.zeros(3)}),
    lambda t: t.update({"probe.states": torch.full((16, 39), float("nan"))}),
    lambda t: t.update({"probe.tasks": torch.full((16,), 7)}),
    lambda t: t.update({"probe.chunks": torch.zeros(1)}),
    lambda t: t.update({"probe.states": torch.zeros(5000, 39)}),
])  # fmt: skip
def test_a_damaged_probe_is_refused(checkpoint: Path, change: object) -> None:
    edit(checkpoint, change)
    with pytest.raises(CheckpointError, match="checkpoint"):
        Policy.load(checkpoint)


def test_the_device_is_chosen_or_named(tiny_run: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Policy.load(tiny_run, device="auto").device.type == expected
    with pytest.raises(ConfigError, match="device='gpu': choose from auto, cpu, cuda"):
        Policy.load(tiny_run, device="gpu")
    with pytest.raises(ConfigError, match="no such GPU here"):
        Policy.load(tiny_run, device="cuda:63")


def test_another_version_is_named(checkpoint: Path) -> None:
    description = json.loads((checkpoint / "policy.json").read_text())
    (checkpoint / "policy.json").write_text(json.dumps({**description, "version": 9}))
    with pytest.raises(CheckpointError, match="version 9; this act_kit reads"):
        Policy.load(checkpoint)


def test_nothing_is_pickled(tiny_run: Path) -> None:
    files = {file.suffix for file in (tiny_run / "checkpoints").rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}


def test_states_go_in_raw_and_are_normalised_inside(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[:20]
    inside = tiny_policy.normalizer(torch.from_numpy(states.astype(np.float32)))
    observation = Observation(states_BS=inside[:16], tasks_B=torch.zeros(16, dtype=torch.int64), images_BCHW3=None)
    assert np.array_equal(tiny_policy.predict(states)[:16], tiny_policy.model.predict(observation).detach().numpy())


def test_a_prediction_does_not_depend_on_who_asks_beside_it(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[: 3 * QUERY_ROWS["cpu"] + 5]
    together = tiny_policy.predict(states)
    order = np.random.default_rng(0).permutation(len(states))
    assert np.array_equal(tiny_policy.predict(states[order]), together[order])
    assert np.array_equal(np.concatenate([tiny_policy.predict(state[None]) for state in states]), together)


def test_acting_step_by_step_is_the_plan(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
    states = reach_store.steps("state")[:8]
    tiny_policy.reset()
    plan = tiny_policy.plan(states[:1], np.array([0]))[0]
    tiny_policy.reset()
    actions = [tiny_policy.act(states[0]) for _ in range(4)]
    assert np.array_equal(np.array(actions), plan)
    assert np.abs(plan).max() <= 1
    fifth = tiny_policy.act(states[5])
    assert np.array_equal(fifth, tiny_policy.plan(states[5:6], np.array([0]))[0, 0])


def test_a_reset_environment_is_asked_anew_and_the_others_go_on(tiny_policy: Policy, reach_store: EpisodeStore) -> None:
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


def test_execution_can_be_changed_within_the_chunk(tiny_policy: Policy) -> None:
    assert tiny_policy.with_chunking(n_action_steps=2).executor.actions_per_query == 2
    assert tiny_policy.with_chunking(temporal_ensemble=True).executor.actions_per_query == 1
    with pytest.raises(CheckpointError, match="predicts 8 actions at once; n_action_steps=9"):
        tiny_policy.with_chunking(n_action_steps=9)


def test_metaworlds_own_evaluator_scores_it(tiny_policy: Policy) -> None:
    import metaworld
    from metaworld.evaluation import evaluation

    envs = gym.vector.SyncVectorEnv(
        [lambda seed=seed: metaworld.make_mt_envs("reach-v3", seed=seed) for seed in range(2)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    success, mean_return, by_task, returns = evaluation(tiny_policy, envs, num_episodes=2)
    assert set(by_task) == {"reach-v3"}
    assert 0 <= success <= 1
    assert mean_return > 0
    assert len(returns["reach-v3"]) == 2
