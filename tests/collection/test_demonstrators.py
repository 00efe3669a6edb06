"""Demonstrators that are made of something: a policy that the expert corrects, and a dataset replayed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from act_kit.collection import collect as module
from act_kit.collection.collect import collect
from act_kit.config import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import check_numbers
from act_kit.diversity.measure import measure
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


def of_policy(run: Path, *overrides: str, **flags: object) -> CollectConfig:
    flags = {"task": "reach-v3", "n": 6, "demonstrator": "policy", **flags}
    return compose("collect", CollectConfig, [f"dagger.run={run}", *overrides], flags)


def of_replay(store: EpisodeStore, *overrides: str, **flags: object) -> CollectConfig:
    flags = {"task": "reach-v3", "n": 6, "demonstrator": "replay", **flags}
    return compose("collect", CollectConfig, [f"replay.dataset={store.path}", *overrides], flags)


@pytest.fixture(scope="module")
def corrected(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Six attempts of a policy that has learnt nearly nothing, the first by the expert alone."""
    return collect(
        of_policy(tiny_run, "dagger.expert_first=1.0", "dagger.expert_last=0.0"),
        tmp_path_factory.mktemp("dagger") / "data",
        executor=SERIAL,
    )


@pytest.mark.e2e
@pytest.mark.parametrize("who", ["policy", "replay"])
def test_two_processes_and_an_interruption_write_the_same_bytes(
    who: str, tiny_run: Path, reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (
        of_policy(tiny_run, noise=0.1) if who == "policy" else of_replay(reach_store, "replay.init_perturbation=0.03")
    )
    collect(wanted, tmp_path / "one", executor=SERIAL)
    with LocalExecutor(2, {"OMP_NUM_THREADS": "1"}) as executor:
        collect(wanted, tmp_path / "two", executor=executor)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    monkeypatch.setattr(module, "COMMIT_EVERY", 2)

    def stop(progress: module.Progress) -> None:
        if progress.num_attempts == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(wanted, tmp_path / "parts", executor=SERIAL, on_progress=stop)
    collect(wanted, tmp_path / "parts", executor=SERIAL, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_the_expert_labels_every_state_that_the_policy_gets_into(corrected: EpisodeStore, tiny_run: Path) -> None:
    expert, policy = ScriptedExpert("reach-v3"), Policy.load(tiny_run)
    num, own = policy.chunking.n_action_steps, []
    for episode in corrected.episodes():
        assert all(np.array_equal(expert.act(s), a) for s, a in zip(episode.state, episode.action, strict=True))
        by_policy = []
        for begin in range(0, len(episode), num):
            stretch = slice(begin, begin + num)
            carried_out = episode.executed_action[stretch]
            planned = np.clip(policy.predict(episode.state[begin][None])[0, :num], -1, 1)[: len(carried_out)]
            by_policy.append(np.array_equal(carried_out, planned))
            assert by_policy[-1] or np.array_equal(carried_out, episode.action[stretch])
        own.append(np.mean(by_policy))
    assert own[0] == 0, "the expert alone"
    assert own[-1] == 1, "the policy alone"
    assert any(0 < share < 1 for share in own)


def test_attempts_that_fail_are_kept_and_accused_of_nothing(corrected: EpisodeStore, tiny_run: Path) -> None:
    assert (corrected.success_steps == -1).any()
    assert corrected.num_episodes == len(corrected.attempts()) == 6
    assert set(corrected.sources) == {f"policy:{tiny_run.name}"}
    assert check_numbers(corrected.episodes()) == []
    assert [finding.text for finding in measure(corrected).findings if finding.about == "data"] == []
    findings = {finding.name: finding.result for finding in examine_dataset(corrected.path)}
    assert {result.status for result in findings.values()} == {"RULED OUT", "UNTESTED"}
    assert findings["actions off by some steps"].status == "RULED OUT"
    assert findings["episodes do not replay"].status == "RULED OUT"


def test_nobody_demonstrated_where_the_policy_is_corrected(corrected: EpisodeStore, reach_store: EpisodeStore) -> None:
    assert corrected.info.seed == reach_store.info.seed
    assert not set(corrected.init_states) & set(reach_store.init_states)


@pytest.mark.e2e
def test_a_policy_learns_from_both_datasets_of_a_task(
    corrected: EpisodeStore, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("trainer.steps=20", "selection.num_evaluations=0", "policy.dim_model=32", "trainer.val_fraction=0.3")
    data = ("--data", reach_store.path, "--data", corrected.path)
    act("train", *data, "--out", folder, "--device", "cpu", *options, check=0)
    contract = Policy.load(folder).contract
    assert contract.tasks == ("reach-v3",)
    assert len(contract.init_states_of("reach-v3")) == 16
    act("eval", folder, "--episodes", 2, "--workers", 1, "baseline_episodes=1", "demonstrated_episodes=2", check=0)
    accused = [finding.name for finding in examine_run(folder, num_workers=1) if finding.is_fatal]
    assert accused == []


def test_a_replay_from_the_same_starts_is_the_same_dataset(reach_store: EpisodeStore, tmp_path: Path) -> None:
    store = collect(of_replay(reach_store, n=10), tmp_path / "data", executor=SERIAL)
    assert store.fingerprint == reach_store.fingerprint
    assert set(store.sources) == {"replay of scripted"}
    assert (store.info.init_distribution, store.info.demonstrator) == ("dataset", "replay")
    assert store.info.parents == [
        {"path": str(reach_store.path), "made_by": reach_store.info.command, "fingerprint": reach_store.fingerprint}
    ]
    with pytest.raises(ActKitError, match=r"has 10 episodes, .* no 11 different ones: --n 10"):
        collect(of_replay(reach_store, n=11), tmp_path / "more", executor=SERIAL)


def test_perturbed_starts_lie_near_and_where_the_task_begins(push_store: EpisodeStore, tmp_path: Path) -> None:
    wanted = of_replay(push_store, "replay.init_perturbation=0.01", task="push-v3", n=8)
    store = collect(wanted, tmp_path / "data", executor=SERIAL)
    task, init_states = get_task("push-v3"), np.array([attempt.init_state.rand_vec for attempt in store.attempts()])
    off = np.abs(init_states - push_store.rand_vecs[np.arange(len(init_states)) % 4])
    assert 0 < off[:, task.informative].max() <= 0.01
    assert np.delete(off, task.informative, axis=1).max() == 0
    assert ((init_states >= task.low) & (init_states <= task.high)).all()
    kept = [k for k, attempt in enumerate(store.attempts()) if attempt.kept]
    for episode, k in zip(store.episodes(), kept, strict=True):
        original = push_store.episodes()[k % 4]
        num = min(len(episode), len(original))
        assert np.array_equal(episode.executed_action[:num], original.executed_action[:num])


def test_another_policy_at_the_same_path_does_not_go_on(
    tiny_run: Path, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    wanted = of_policy(folder, n=2)
    collect(wanted, tmp_path / "data", executor=SERIAL)
    shutil.rmtree(folder)
    folder.mkdir()
    Trainer(tiny_config("trainer.steps=2", "trainer.validate_every=2"), [reach_store], folder, selector=None).train()
    with pytest.raises(ActKitError, match=r"run has changed since .* was begun with it.*--out .*data-2"):
        collect(wanted, tmp_path / "data", executor=SERIAL, resume=True)
    again = collect(wanted, tmp_path / "again", executor=SERIAL)
    assert again.fingerprint != EpisodeStore.open(tmp_path / "data").fingerprint, "the old policy was used"


@pytest.mark.e2e
def test_the_recorded_command_makes_the_same_bytes(corrected: EpisodeStore, tmp_path: Path) -> None:
    command = corrected.info.command.removeprefix("act ").split()
    act(*command, "--out", tmp_path / "again", "--workers", 1, check=0)
    assert contents(tmp_path / "again") == contents(corrected.path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "DATA"), "--source belongs to --demonstrator policy or"),
        (("--demonstrator", "policy"), "--demonstrator policy of what? Say so with --source"),
        (("--demonstrator", "policy", "--source", "DATA"), "is a dataset, not a run"),
        (("--demonstrator", "policy", "--source", "RUN", "--task", "push-v3"), "trained on reach-v3, not on push-v3"),
        (("--demonstrator", "replay", "--source", "DATA", "--task", "push-v3"), "is of reach-v3, not of push-v3"),
        (
            ("--demonstrator", "replay", "--source", "DATA", "--init-distribution", "sobol"),
            "its starts are the dataset's",
        ),
        (("--init-perturbation", "0.1"), "only --demonstrator replay moves starts"),
        (("replay.dataset=x",), "replay.dataset=x belongs to --demonstrator replay, not to scripted"),
        (("--demonstrator", "polcy"), "there are scripted, policy, replay, teleop. Did you mean 'policy'?"),
        (("--demonstrator", "replay", "--source", "DATA", "--n", "10", "--out", "DATA", "--overwrite"), "made from"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_belong_together_is_refused(
    arguments: tuple[str, ...], says: str, tiny_run: Path, reach_store: EpisodeStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = {"DATA": str(reach_store.path), "RUN": str(tiny_run)}
    given = [paths.get(argument, argument) for argument in arguments]
    task = [] if "--task" in given else ["--task", "reach-v3"]
    out = [] if "--out" in given else ["--out", str(tmp_path / "data")]
    code, _, error = run(monkeypatch, capsys, "collect", *task, *out, *given)
    assert (code, len(error.splitlines())) == (2, 1)
    assert says in error
    assert not (tmp_path / "data").exists()


def test_a_policy_on_pictures_is_refused(images_store: EpisodeStore, tmp_path: Path) -> None:
    Trainer(
        tiny_config(*IMAGES, "trainer.steps=1", "trainer.batch_size=2"), [images_store], tmp_path, selector=None
    ).train()
    with pytest.raises(ActKitError, match="looks at pictures"):
        collect(of_policy(tmp_path), tmp_path / "data", executor=SERIAL)
    assert not (tmp_path / "data").exists()
