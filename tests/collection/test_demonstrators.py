"""Demonstrators made from a run or a dataset: DAgger and replay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from act_kit.collection import collect as module
from act_kit.collection.collect import collect
from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import check_numbers
from act_kit.diversity.measure import measure_diversity
from act_kit.doctor.diagnose import examine_dataset, examine_run
from act_kit.errors import ActKitError
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.tasks import get_task
from act_kit.training.trainer import Trainer
from tests.conftest import IMAGES, SERIAL, act, contents, tiny_config
from tests.test_cli import run


def dagger_config(run: Path, *overrides: str, **flags: object) -> CollectConfig:
    flags = {"task": "reach-v3", "n": 6, "demonstrator": "policy", **flags}
    return compose(CollectConfig, [f"dagger.run={run}", *overrides], flags)


def replay_config(store: EpisodeStore, *overrides: str, **flags: object) -> CollectConfig:
    flags = {"task": "reach-v3", "n": 6, "demonstrator": "replay", **flags}
    return compose(CollectConfig, [f"replay.dataset={store.path}", *overrides], flags)


@pytest.fixture(scope="module")
def dagger_store(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Collect six attempts with a barely trained policy, the first executed by the expert alone."""
    return collect(
        dagger_config(tiny_run, "dagger.expert_first=1.0", "dagger.expert_last=0.0"),
        tmp_path_factory.mktemp("dagger") / "data",
        executor=SERIAL,
    )


@pytest.mark.e2e
@pytest.mark.parametrize("demonstrator", ["policy", "replay"])
def test_two_processes_and_an_interruption_write_the_same_bytes(
    demonstrator: str, tiny_run: Path, reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if demonstrator == "policy":
        wanted = dagger_config(tiny_run, noise=0.1)
    else:
        wanted = replay_config(reach_store, "replay.init_perturbation=0.03")
    collect(wanted, tmp_path / "one", executor=SERIAL)
    with LocalExecutor(2, {"OMP_NUM_THREADS": "1"}) as executor:
        collect(wanted, tmp_path / "two", executor=executor)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    monkeypatch.setattr(module, "COMMIT_EVERY", 2)

    def stop(num_kept: int, num_attempts: int) -> None:
        if num_attempts == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(wanted, tmp_path / "parts", executor=SERIAL, on_progress=stop)
    collect(wanted, tmp_path / "parts", executor=SERIAL, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_the_expert_labels_every_state_that_the_policy_visits(dagger_store: EpisodeStore, tiny_run: Path) -> None:
    expert, policy = ScriptedExpert("reach-v3"), Policy.load(tiny_run)
    num, policy_shares = policy.chunking.n_action_steps, []
    for episode in dagger_store.episodes():
        assert all(np.array_equal(expert.act(s), a) for s, a in zip(episode.state, episode.action, strict=True))
        by_policy = []
        for begin in range(0, len(episode), num):
            chunk = slice(begin, begin + num)
            executed = episode.executed_action[chunk]
            planned = np.clip(policy.predict(episode.state[begin][None])[0, :num], -1, 1)[: len(executed)]
            by_policy.append(np.array_equal(executed, planned))
            assert by_policy[-1] or np.array_equal(executed, episode.action[chunk])
        policy_shares.append(np.mean(by_policy))
    assert policy_shares[0] == 0, "the expert alone"
    assert policy_shares[-1] == 1, "the policy alone"
    assert any(0 < share < 1 for share in policy_shares)


def test_failed_attempts_are_kept_and_cause_no_findings(dagger_store: EpisodeStore, tiny_run: Path) -> None:
    assert (dagger_store.success_steps == -1).any()
    assert dagger_store.num_episodes == len(dagger_store.attempts()) == 6
    assert set(dagger_store.sources) == {f"policy:{tiny_run.name}"}
    assert check_numbers(dagger_store.episodes()) == []
    assert [finding.text for finding in measure_diversity(dagger_store).findings if finding.about == "data"] == []
    findings = {finding.name: finding.result for finding in examine_dataset(dagger_store.path)}
    assert {result.status for result in findings.values()} == {"RULED OUT", "UNTESTED"}
    assert findings["actions off by some steps"].status == "RULED OUT"
    assert findings["episodes do not replay"].status == "RULED OUT"


def test_dagger_uses_other_initial_states_than_the_demonstrations(
    dagger_store: EpisodeStore, reach_store: EpisodeStore
) -> None:
    assert dagger_store.info.seed == reach_store.info.seed
    assert not set(dagger_store.init_states) & set(reach_store.init_states)


@pytest.mark.e2e
def test_a_policy_learns_from_both_datasets_of_a_task(
    dagger_store: EpisodeStore, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("trainer.steps=20", "selection.num_evaluations=0", "policy.dim_model=32", "trainer.val_fraction=0.3")
    data = ("--data", reach_store.path, "--data", dagger_store.path)
    act("train", *data, "--out", folder, "--device", "cpu", *options, check=0)
    metadata = Policy.load(folder).metadata
    assert metadata.tasks == ("reach-v3",)
    assert len(metadata.init_states_of("reach-v3")) == 16
    act("eval", folder, "--episodes", 2, "--workers", 1, "baseline_episodes=1", "demonstrated_episodes=2", check=0)
    fatal = [finding.name for finding in examine_run(folder, num_workers=1) if finding.is_fatal]
    assert fatal == []


def test_a_replay_from_the_same_initial_states_gives_the_same_dataset(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    store = collect(replay_config(reach_store, n=10), tmp_path / "data", executor=SERIAL)
    assert store.fingerprint == reach_store.fingerprint
    assert set(store.sources) == {"replay of scripted"}
    assert (store.info.init_distribution, store.info.demonstrator) == ("dataset", "replay")
    assert store.info.parents == [
        {"path": str(reach_store.path), "made_by": reach_store.info.command, "fingerprint": reach_store.fingerprint}
    ]
    with pytest.raises(ActKitError, match=r"has 10 episodes: .*, not 11\. Fix: --n 10"):
        collect(replay_config(reach_store, n=11), tmp_path / "more", executor=SERIAL)


def test_perturbed_initial_states_are_near_and_valid(push_store: EpisodeStore, tmp_path: Path) -> None:
    wanted = replay_config(push_store, "replay.init_perturbation=0.01", task="push-v3", n=8)
    store = collect(wanted, tmp_path / "data", executor=SERIAL)
    task, init_states = get_task("push-v3"), np.array([attempt.init_state.rand_vec for attempt in store.attempts()])
    offsets = np.abs(init_states - push_store.rand_vecs[np.arange(len(init_states)) % 4])
    assert 0 < offsets[:, task.informative].max() <= 0.01
    assert np.delete(offsets, task.informative, axis=1).max() == 0
    assert ((init_states >= task.low) & (init_states <= task.high)).all()
    kept = [k for k, attempt in enumerate(store.attempts()) if attempt.kept]
    for episode, k in zip(store.episodes(), kept, strict=True):
        original = push_store.episodes()[k % 4]
        num = min(len(episode), len(original))
        assert np.array_equal(episode.executed_action[:num], original.executed_action[:num])


def test_resuming_with_another_policy_at_the_same_path_is_refused(
    tiny_run: Path, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    wanted = dagger_config(folder, n=2)
    collect(wanted, tmp_path / "data", executor=SERIAL)
    shutil.rmtree(folder)
    folder.mkdir()
    Trainer(tiny_config("trainer.steps=2", "trainer.validate_every=2"), [reach_store], folder, evaluator=None).train()
    with pytest.raises(ActKitError, match=r"run has changed since .* was collected with it.*--out .*data-2"):
        collect(wanted, tmp_path / "data", executor=SERIAL, resume=True)
    again = collect(wanted, tmp_path / "again", executor=SERIAL)
    assert again.fingerprint != EpisodeStore.open(tmp_path / "data").fingerprint, "the old policy was used"


@pytest.mark.e2e
def test_the_recorded_command_reproduces_the_same_bytes(dagger_store: EpisodeStore, tmp_path: Path) -> None:
    command = dagger_store.info.command.removeprefix("act ").split()
    act(*command, "--out", tmp_path / "again", "--workers", 1, check=0)
    assert contents(tmp_path / "again") == contents(dagger_store.path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "DATA"), "--source: expected --demonstrator policy or replay. Fix: "),
        (("--demonstrator", "policy"), "--demonstrator policy has no source"),
        (("--demonstrator", "policy", "--source", "DATA"), "is a dataset, not a run"),
        (("--demonstrator", "policy", "--source", "RUN", "--task", "push-v3"), "trained on reach-v3, not on push-v3"),
        (
            ("--demonstrator", "replay", "--source", "DATA", "--task", "push-v3"),
            "holds episodes of reach-v3: expected push-v3. Fix: --task reach-v3",
        ),
        (
            ("--demonstrator", "replay", "--source", "DATA", "--init-distribution", "sobol"),
            "the initial states are the dataset's",
        ),
        (("--init-perturbation", "0.1"), "only --demonstrator replay perturbs initial states"),
        (("replay.dataset=x",), "replay.dataset=x belongs to --demonstrator replay, not to scripted"),
        (("--demonstrator", "polcy"), "scripted, other-way, policy, replay, teleop. Did you mean 'policy'?"),
        (
            ("--demonstrator", "replay", "--source", "DATA", "--n", "10", "--out", "DATA", "--overwrite"),
            "is both source and output",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradicting_options_are_refused(
    arguments: tuple[str, ...],
    message: str,
    tiny_run: Path,
    reach_store: EpisodeStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"DATA": str(reach_store.path), "RUN": str(tiny_run)}
    given = [paths.get(argument, argument) for argument in arguments]
    task = [] if "--task" in given else ["--task", "reach-v3"]
    out = [] if "--out" in given else ["--out", str(tmp_path / "data")]
    code, _, error = run(monkeypatch, capsys, "collect", *task, *out, *given)
    assert (code, len(error.splitlines())) == (2, 1)
    assert message in error
    assert not (tmp_path / "data").exists()


def test_a_policy_on_images_is_refused(images_store: EpisodeStore, tmp_path: Path) -> None:
    Trainer(
        tiny_config(*IMAGES, "trainer.steps=1", "trainer.batch_size=2"), [images_store], tmp_path, evaluator=None
    ).train()
    with pytest.raises(ActKitError, match="takes images"):
        collect(dagger_config(tmp_path), tmp_path / "data", executor=SERIAL)
    assert not (tmp_path / "data").exists()
