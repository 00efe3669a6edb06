"""A model of the user's own, the example's linear regressor, goes all the way that ACT goes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import act_kit
from act_kit.config.evaluation import EvalConfig
from act_kit.config.policy import ACTConfig, PolicyConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor.diagnose import examine_run
from act_kit.errors import CheckpointError, ConfigError
from act_kit.eval.evaluate import evaluate_all
from act_kit.eval.init_state_sets import init_state_sets_from
from act_kit.eval.selection import make_checkpoint_evaluator
from act_kit.metrics import read_metrics, series
from act_kit.overrides import compose, preset_of, train_overrides
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.training.run import load_run
from act_kit.training.trainer import Trainer
from examples import custom_head
from examples.custom_head import LinearConfig, LinearModel
from tests.conftest import ONE_THREAD, act, continue_run, make_run

ROOT = Path(__file__).parent.parent.parent
ACT_WORDS = r"the same ACT|policies\.act import|cvae|l1_reconstruction|\bkl\b|kl_|latent"

OPTIONS = ("policy.name=linear", "policy.chunk_size=8", "trainer.steps=300", "trainer.validate_every=150")


@pytest.fixture(scope="module")
def run(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, with one evaluation that selects a checkpoint."""
    run = tmp_path_factory.mktemp("linear") / "run"
    selection = ("selection.num_evaluations=1", "selection.episodes=2")
    config = make_run(run, [reach_store.path], [*OPTIONS, *selection], {})
    init_states = InitialStateDistribution("reach-v3").sample(2, seed=0, stream="select")
    with RolloutPool(1) as roll:
        Trainer(config, [reach_store], run, evaluator=make_checkpoint_evaluator(roll, init_states)).train()
    return run


def test_it_is_trained_and_its_losses_are_recorded(run: Path) -> None:
    losses = [value for _, value in series(run, "train/l1")]
    assert losses[-1] < 0.7 * losses[0]
    assert series(run, "train/loss") == series(run, "train/l1")
    assert [step for step, _ in series(run, "val/l1")] == [150, 300]
    assert not any("train/kl" in record for record in read_metrics(run))


def test_it_is_saved_and_loaded(run: Path, reach_store: EpisodeStore) -> None:
    policy = Policy.load(run)
    assert isinstance(policy.model, LinearModel)
    assert policy.model.config == LinearConfig(chunk_size=8)
    states = reach_store.steps("state")[:5]
    normalized = policy.normalizer(torch.from_numpy(states.astype(np.float32)))
    expected = policy.model.linear(normalized).reshape(5, 8, 4).detach().numpy()
    assert policy.predict(states) == pytest.approx(expected, abs=1e-5)


def test_it_is_evaluated(run: Path) -> None:
    config = EvalConfig(episodes=3, baseline_episodes=2, demonstrated_episodes=2)
    policy = Policy.load(run)
    (init_state_set,) = init_state_sets_from("test", policy.metadata, config)
    with RolloutPool(1) as roll:
        assert evaluate_all(policy, [init_state_set], config, roll=roll)[0].success.num == 3


@pytest.mark.e2e
def test_it_is_diagnosed(run: Path) -> None:
    findings = examine_run(run, num_workers=1)
    by_name = {finding.name: finding.result for finding in findings}
    for check in ("checkpoint does not load", "not deterministic", "training/inference mismatch", "missing records"):
        assert by_name[check].status == "RULED OUT", by_name[check].message
    untested = [finding.result.message for finding in findings if finding.result.status == "UNTESTED"]
    assert all("was not evaluated" in message for message in untested), untested


def test_it_resumes_and_is_trained_further(run: Path, reach_store: EpisodeStore, tmp_path: Path) -> None:
    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 160:
            raise KeyboardInterrupt

    config, _ = load_run(run)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, [reach_store], tmp_path, evaluator=None).train(interrupt)
    trainer = Trainer(config, [reach_store], tmp_path, evaluator=None)
    trainer.resume()
    assert trainer.step == 160
    resumed, whole = trainer.train(), Policy.load(run / "checkpoints" / "last")
    assert resumed.weights_hash == whole.weights_hash
    assert "LinearModel" in trainer.summary()
    with pytest.raises(CheckpointError, match=r"has policy\.name=linear, here it is act"):
        make_run(tmp_path / "act", [reach_store.path], [f"init_from={run}"], {})


def test_it_is_chosen_by_name(run: Path) -> None:
    config = compose(TrainConfig, OPTIONS)
    assert config.policy == LinearConfig(chunk_size=8)
    assert preset_of(config) == ("policy.name=linear", compose(TrainConfig, ["policy.name=linear"]))
    assert compose(TrainConfig, train_overrides(config, {})) == config
    with pytest.raises(ConfigError, match=r"There is no option 'policy\.dim_model'"):
        compose(TrainConfig, [*OPTIONS, "policy.dim_model=8"])
    with pytest.raises(ConfigError, match=r"policy\.name=linaer: choose from: .*linear.* Did you mean 'linear'"):
        compose(TrainConfig, ["policy.name=linaer"])
    with pytest.raises(ConfigError, match=r"policy\.dim_model=None, not 8"):
        continue_run(run, [], ["policy.dim_model=8"], {})


HEAD = "examples.custom_head:LinearModel"


@pytest.mark.e2e
def test_a_run_remembers_the_module_of_its_head(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """Nothing imports the module before the verbs: ``train`` names it, and every other verb finds it in the run."""
    module = tmp_path / "my_head.py"
    module.write_text(Path(custom_head.__file__).read_text("utf-8").replace('"linear"', '"mine"'), "utf-8")
    own = (f"policy.head={module.stem}:LinearModel", *OPTIONS[1:2], "trainer.steps=4", "selection.num_evaluations=0")
    run, cwd = tmp_path / "run", {"cwd": tmp_path, "env": ONE_THREAD | {"PYTHONPATH": str(ROOT)}}
    train = ("train", "--data", reach_store.path, "--allow-low-diversity", "--device", "cpu", "--workers", "1")
    act(*train, "--out", run, *own, check=0, **cwd)
    assert f"head: {module.stem}:LinearModel" in (run / "config.yaml").read_text()
    quick = ("--episodes", "1", "baseline_episodes=0", "demonstrated_episodes=0", "--workers", "1", "--device", "cpu")
    act("eval", run, *quick, check=0, **cwd)
    act("train", "--resume", "--out", run, "--device", "cpu", "--workers", "1", check=0, **cwd)
    module.unlink()
    lost = act("eval", run, "--out", tmp_path / "lost", *quick, check=2, **cwd)
    message = " ".join(lost.stderr.split())
    assert "has a model that does not load: my_head:LinearModel: importing my_head failed" in message
    assert "Fix: run act in the folder of my_head.py, or put that folder on PYTHONPATH" in message


def test_a_head_is_chosen_by_its_class() -> None:
    config = compose(TrainConfig, [f"policy.head={HEAD}", "policy.chunk_size=8"])
    assert config.policy == LinearConfig(head=HEAD, chunk_size=8)
    assert compose(TrainConfig, train_overrides(config, {})) == config
    with pytest.raises(ConfigError, match=r"policy\.head=linear: expected MODULE:CLASS, such as"):
        compose(TrainConfig, ["policy.head=linear"])
    with pytest.raises(ConfigError, match=r"examples\.custom_head has no 'LinearModle'\. Did you mean 'LinearModel'"):
        compose(TrainConfig, ["policy.head=examples.custom_head:LinearModle"])
    with pytest.raises(ConfigError, match=r"is not a model: expected a ChunkModel with @register_model"):
        compose(TrainConfig, ["policy.head=examples.custom_head:main"])


def test_only_act_itself_names_its_losses() -> None:
    package = Path(act_kit.__file__).parent
    modules = [path for folder in ("training", "doctor", "policies") for path in (package / folder).glob("*.py")]
    for path in [*modules, package / "reports" / "demo.py", package / "metrics.py"]:
        found = re.search(ACT_WORDS, path.read_text())
        assert found is None, f"{path}: {found}"


def test_a_policy_of_an_unregistered_model_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PolicyConfig, "kinds", {"act": ACTConfig})
    with pytest.raises(CheckpointError, match=r"a model 'linear', which is not registered. Fix: import the module"):
        Policy.load(run)
