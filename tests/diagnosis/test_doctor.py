"""The doctor: healthy is called healthy, a fault is ranked first, what it cannot know it does not say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.diagnosis.doctor import examine_dataset, examine_run, find_patients
from act_kit.diagnosis.finding import Finding
from act_kit.diagnosis.generalisation import measure_loss, replay_nearest
from act_kit.errors import CheckpointError
from act_kit.policy.policy import Policy
from act_kit.sim.starts import StartLaw
from act_kit.sim.tasks import TASKS
from act_kit.telemetry import series
from benchmarks.faults import FAULTS, REFUSALS, Case, Fault, edit, inject, make_healthy
from tests.conftest import TINY, act, make_dataset

pytestmark = pytest.mark.xdist_group("doctor")  # they share one run, which takes half a minute to train

QUICK = (
    "wrong normaliser",
    "truncated checkpoint",
    "metric under another name",
    "horizon too short",
    "result edited by hand",
)
"""One of each stage that needs no training. All of them: pytest -m slow, or benchmarks/faults.py."""


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Fifty demonstrations of reach-v3, a policy that always succeeds, and its evaluation."""
    return make_healthy(tmp_path_factory.mktemp("doctor") / "healthy")


def diagnose(case: Case) -> list[Finding]:
    return examine_run(case.run, num_workers=1)


def test_a_healthy_run_is_healthy(healthy: Case) -> None:
    findings = diagnose(healthy)
    assert {finding.result.status for finding in findings} == {"RULED OUT"}, findings[0]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=() if fault.name in QUICK else pytest.mark.slow, id=fault.name) for fault in FAULTS],
)
def test_a_fault_is_ranked_first(healthy: Case, fault: Fault, tmp_path: Path) -> None:
    first = diagnose(inject(fault, healthy, tmp_path / "case"))[0]
    assert first.name == fault.found_as, first.result.says
    assert first.result.status in ("CONFIRMED", "SUSPECTED")
    assert first.result.evidence
    assert first.result.mend
    assert first.settle


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "z sampled at inference" else pytest.mark.slow) for name in REFUSALS],
)
def test_a_refusal_names_the_fault(healthy: Case, name: str, tmp_path: Path) -> None:
    refuse, phrase = REFUSALS[name]
    assert phrase in refuse(healthy.copy(tmp_path / "case"))


def test_a_short_training_of_two_tasks_is_called_that(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    data = ("--data", reach_store.path, "--data", push_store.path)
    run = tmp_path / "run"
    act("train", *data, "--out", run, "--workers", 1, "--allow-degenerate", *TINY, check=0)
    act("eval", run, "--episodes", 3, "--workers", 1, "control_episodes=2", "demonstrated_episodes=2", check=0)
    findings = examine_run(run, num_workers=1)
    assert findings[0].name == "hardly trained"
    assert not any(finding.is_fatal for finding in findings), findings[0].result.says
    untested = {finding.name for finding in findings if finding.result.status == "UNTESTED"}
    assert untested <= {"starts do not cover"}, "four demonstrations of push are few"


def test_what_is_not_there_is_untested(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    shutil.rmtree(case.data)
    shutil.rmtree(case.evaluation)
    findings = {finding.name: finding.result for finding in diagnose(case)}
    assert findings["metrics under other names"].status == "RULED OUT"
    assert findings["checkpoint does not load"].status == "RULED OUT"
    assert "There is no dataset" in findings["checkpoint of another run"].says
    assert "was not evaluated" in findings["too few episodes"].says
    for name in ("checkpoint of another run", "normaliser of other data", "too few episodes", "dataset"):
        assert findings[name].status == "UNTESTED", name


def test_files_that_hold_anything_break_nothing(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    (case.evaluation / "summary.json").write_text('{"task": 3}')
    (case.evaluation / "episodes.csv").write_bytes(b"\xff\xfe,")
    (case.run / "metrics.jsonl").write_text('{"step": "seven"}\n[]\n')
    findings = diagnose(case)
    assert findings[0].name == "metrics under other names"
    assert {finding.name: finding.result.status for finding in findings}["evaluation damaged"] == "CONFIRMED"


def test_what_came_later_is_no_crime(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    summary = json.loads((case.evaluation / "summary.json").read_text())
    policy = json.loads((case.checkpoint / "policy.json").read_text())
    (shown,) = policy["contract"]["demonstrations"]
    shown["starts"], shown["fingerprint"] = shown["starts"][:40], "0" * 64
    (case.checkpoint / "policy.json").write_text(json.dumps(policy))
    (case.evaluation / "summary.json").write_text(
        json.dumps({**summary, "policy_step": 300, "dataset": {"fingerprint": "0" * 64}})
    )
    findings = {finding.name: finding.result for finding in diagnose(case)}
    assert "has grown" in findings["checkpoint of another run"].says
    assert "is of step 300" in findings["evaluation of another task or policy"].says
    assert findings["normaliser of other data"].status == "UNTESTED"
    assert not any(result.severity == "critical" for result in findings.values())


def test_what_was_edited_is_not_blamed_on_something_else(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    config = case.run / "config.yaml"
    config.write_text(config.read_text().replace("  seed: 0", "  seed: 1"))
    policy = json.loads((case.checkpoint / "policy.json").read_text())
    policy["contract"]["goal_visible"] = False
    policy["contract"]["versions"]["mujoco"] = "9.0.0"
    (case.checkpoint / "policy.json").write_text(json.dumps(policy))
    findings = {finding.name: finding.result for finding in diagnose(case) if finding.result.status != "RULED OUT"}
    assert "was policy.json edited?" in findings["goal hidden"].says
    assert "trainer.seed" in findings["normaliser of other data"].says
    assert "mujoco is" in findings["another environment in use"].says
    assert "trainer.seed=0, not 1" in findings["evaluation of another task or policy"].says
    for name in ("goal hidden", "normaliser of other data"):
        assert findings[name].status == "SUSPECTED"


def test_data_of_other_versions_are_not_accused(healthy: Case, tmp_path: Path) -> None:
    def disturb(store: EpisodeStore) -> None:
        store.group["data/state"][:] = store.steps("state") + 1e-3  # type: ignore[index]
        store.group.attrs["versions"] = {**store.info.versions, "mujoco": "9.0.0"}

    case = healthy.copy(tmp_path / "case")
    edit(case, disturb)
    findings = {finding.name: finding.result for finding in examine_dataset(case.data)}
    assert findings["episodes do not replay"].status == "SUSPECTED"
    assert "mujoco 9.0.0" in findings["episodes do not replay"].says


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_sound_data_of_every_task_are_sound(task: str, tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", task=task, n=12, noise=0.1 if len(task) % 2 else 0.0)
    findings = [
        finding for finding in examine_dataset(store.path) if finding.result.status in ("CONFIRMED", "SUSPECTED")
    ]
    assert not findings, findings[0]


def test_edited_data_are_named_by_what_is_wrong_with_them(healthy: Case, tmp_path: Path) -> None:
    def swap_starts(store: EpisodeStore) -> None:
        store.group["meta/rand_vec"][:] = store.rand_vecs[::-1]  # type: ignore[index]

    def move_one_start(store: EpisodeStore) -> None:
        starts = store.rand_vecs
        starts[7, 3] += 0.02
        store.group["meta/rand_vec"][:] = starts  # type: ignore[index]

    def disturb(store: EpisodeStore) -> None:
        actions = store.steps("action")
        actions[::3] = np.clip(actions[::3] + 0.2, -1, 1)
        store.group["data/action"][:] = actions  # type: ignore[index]

    def damage(store: EpisodeStore) -> None:
        store.group["data/distance"][:5] = 0.0  # type: ignore[index]
        store.group.attrs["fingerprint"] = "0" * 64

    for change, name in (
        (swap_starts, "initial states changed"),
        (move_one_start, "data that cannot be"),
        (disturb, "actions offset"),
        (damage, "episodes do not replay"),
    ):
        case = healthy.copy(tmp_path / change.__name__)
        edit(case, change)
        findings = {finding.name: finding for finding in examine_dataset(case.data)}
        assert findings[name].is_fatal, change


def test_the_loss_in_use_is_the_one_that_training_recorded(healthy: Case) -> None:
    policy, store = Policy.load(healthy.run), EpisodeStore.open(healthy.data)
    from act_kit.datasets.split import split_episodes

    loss = measure_loss(policy, store, split_episodes(store.num_episodes, 0.1, 0)[1])
    assert loss.value == pytest.approx(dict(series(healthy.run, "val/l1_prior"))[policy.contract.step], rel=1e-4)


def test_the_nearest_demonstration_succeeds_from_its_own_start(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=4)
    assert replay_nearest(store, store.starts) == [True] * 4
    assert not all(replay_nearest(store, StartLaw("reach-v3").sample(10, seed=0, stream="evaluate")))


def test_the_report_predicts_with_a_run(healthy: Case, tmp_path: Path) -> None:
    done = act("report", healthy.data, "--run", healthy.run, "--out", tmp_path / "report", check=0)
    assert "replayed from fresh starts" in done.stdout
    assert "held out" in done.stdout
    assert "by heart" not in done.stderr
    assert "What to expect of a policy" in (tmp_path / "report" / "report.html").read_text()


def test_the_report_refuses_a_run_of_other_data(healthy: Case, push_store: EpisodeStore, tmp_path: Path) -> None:
    for store in (push_store, make_dataset(tmp_path / "reach", seed=1)):
        done = act("report", store.path, "--run", healthy.run, "--out", tmp_path / "report", check=2)
        assert "was not trained on" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_says_it_all_and_ends_as_it_should(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    (case.run / "metrics.jsonl").write_text((case.run / "metrics.jsonl").read_text().replace("train/kl", "train/k1"))
    done = act("doctor", case.folder, "--out", tmp_path / "findings.json", "--workers", 1, check=2)
    assert "Did you mean 'train/kl'?" in done.stdout.replace("\n", " ")
    assert f"act train --data {case.data}" in json.dumps(json.loads((tmp_path / "findings.json").read_text()))
    assert set(json.loads((tmp_path / "findings.json").read_text())) == {str(case.data), str(case.run)}
    with pytest.raises(CheckpointError, match="neither a run"):
        find_patients(tmp_path / "nothing")


def test_this_machine_can_simulate() -> None:
    done = act("doctor", "--workers", 1, check=0)
    assert "reach-v3 10/10" in done.stdout.replace("\n", " ")
