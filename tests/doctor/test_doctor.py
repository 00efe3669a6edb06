"""The doctor: edits are named as edits, unknown facts are untested, and printed commands can be run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_kit.config.training import TrainConfig
from act_kit.datasets.ops import Derivation, Part, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.doctor import consistency, evaluations, inference, learning, records
from act_kit.doctor.case import RunCase, TaskRollouts
from act_kit.doctor.diagnose import _run_of, examine_dataset, examine_run, find_targets
from act_kit.doctor.finding import Result
from act_kit.doctor.generalization import IncomparableError, comparable, measure_loss, replay_nearest
from act_kit.errors import ActKitError, CheckpointError, DatasetError
from act_kit.eval.files import read_evaluation
from act_kit.files import SEEDS, read_json, write_json, write_text
from act_kit.metrics import series
from act_kit.overrides import compose
from act_kit.policies.policy import Policy
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.tasks import TASKS
from act_kit.statistics import Rate
from act_kit.training.run import load_run, record_evaluation
from act_kit.training.schedule import with_schedule
from tests.conftest import ONE_THREAD, TINY, act, make_dataset, make_run
from tests.doctor.cases import Case, edit
from tests.doctor.data_faults import DATA_FAULTS, write_array
from tests.doctor.faults import (
    cut_records,
    edited_alike,
    edited_losses,
    evaluated_before_trained,
    first_checkpoint_is_best,
)

# All tests share one run, whose training takes half a minute.
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("doctor")]


def run_check(case: Case, check: Callable[[RunCase], Result]) -> Result:
    """Run one check."""
    run = RunCase(case.run, 1)
    try:
        return check(run)
    finally:
        run.close()


def retraining(command: str) -> tuple[TrainConfig, dict[str, list[str]]]:
    """Parse a printed ``act train`` as a shell and Hydra would; return the configuration and the flags."""
    _, _, training = command.rpartition("&& ")
    act_, verb, *words = shlex.split(training)
    assert (act_, verb) == ("act", "train")
    flags: dict[str, list[str]] = {}
    overrides = []
    while words:
        word = words.pop(0)
        if word == "--allow-low-diversity":
            flags[word] = []
        elif word.startswith("--"):
            flags.setdefault(word, []).append(words.pop(0))
        else:
            overrides.append(word)
    return compose(TrainConfig, overrides), flags


def test_a_short_training_of_two_tasks_is_underfitting(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    data = ("--data", reach_store.path, "--data", push_store.path)
    run = tmp_path / "run"
    act("train", *data, "--out", run, "--workers", 1, "--allow-low-diversity", *TINY, check=0)
    act("eval", run, "--episodes", 3, "--workers", 1, "baseline_episodes=2", "demonstrated_episodes=2", check=0)
    findings = examine_run(run, num_workers=1)
    assert findings[0].name == "underfitting"
    assert not any(finding.is_fatal for finding in findings), findings[0].result.message
    for finding in findings[:2]:  # each task by itself
        assert "reach-v3: " in finding.result.message
        assert "push-v3: " in finding.result.message
    config, flags = retraining(findings[0].result.fix)
    assert config == compose(TrainConfig, [*TINY, "trainer.steps=0"])
    assert flags["--data"] == [str(reach_store.path), str(push_store.path)]
    assert not Path(flags["--out"][0]).exists()
    untested = {finding.name for finding in findings if finding.result.status == "UNTESTED"}
    assert untested <= {"poor coverage of initial states"}, "four demonstrations of push are few"


def test_missing_data_and_evaluations_are_untested(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    shutil.rmtree(case.data)
    shutil.rmtree(case.evaluation)
    findings = {finding.name: finding.result for finding in examine_run(case.run, num_workers=1)}
    assert findings["undeclared metrics"].status == "RULED OUT"
    assert findings["checkpoint does not load"].status == "RULED OUT"
    assert "There is no dataset" in findings["checkpoint of another run"].message
    assert "was not evaluated" in findings["too few episodes"].message
    for name in ("checkpoint of another run", "normalizer of other data", "too few episodes", "dataset"):
        assert findings[name].status == "UNTESTED", name


def test_damaged_files_do_not_stop_the_doctor(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    (case.evaluation / "summary.json").write_text('{"task": 3}')
    (case.evaluation / "episodes.csv").write_bytes(b"\xff\xfe,")
    (case.run / "metrics.jsonl").write_text('{"step": "seven"}\n[]\n')
    findings = examine_run(case.run, num_workers=1)
    assert findings[0].name == "undeclared metrics"
    assert {finding.name: finding.result.status for finding in findings}["evaluation damaged"] == "CONFIRMED"


def test_later_changes_are_no_critical_fault(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    summary = json.loads((case.evaluation / "summary.json").read_text())
    policy = json.loads((case.checkpoint / "policy.json").read_text())
    (shown,) = policy["metadata"]["datasets"]
    shown["init_states"], shown["fingerprint"] = shown["init_states"][:40], "0" * 64
    (case.checkpoint / "policy.json").write_text(json.dumps(policy))
    (case.evaluation / "summary.json").write_text(
        json.dumps({**summary, "policy_step": 300, "dataset": {"fingerprint": "0" * 64}})
    )
    findings = {finding.name: finding.result for finding in examine_run(case.run, num_workers=1)}
    assert "has grown" in findings["checkpoint of another run"].message
    assert "evaluates step 300" in findings["evaluation of another task or policy"].message
    assert findings["normalizer of other data"].status == "UNTESTED"
    assert not any(result.severity == "critical" for result in findings.values())


def test_edits_are_reported_as_edits(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    config = case.run / "config.yaml"
    config.write_text(config.read_text().replace("  seed: 0", "  seed: 1"))
    policy = json.loads((case.checkpoint / "policy.json").read_text())
    policy["metadata"]["goal_visible"] = False
    policy["metadata"]["versions"]["mujoco"] = "9.0.0"
    (case.checkpoint / "policy.json").write_text(json.dumps(policy))
    findings = {
        finding.name: finding.result
        for finding in examine_run(case.run, num_workers=1)
        if finding.result.status != "RULED OUT"
    }
    assert "was policy.json edited?" in findings["goal hidden"].message
    assert "trainer.seed" in findings["normalizer of other data"].message
    assert "mujoco is" in findings["environment mismatch"].message
    assert "trainer.seed=0, not 1" in findings["evaluation of another task or policy"].message
    for name in ("goal hidden", "normalizer of other data"):
        assert findings[name].status == "SUSPECTED"


def test_data_of_other_versions_are_only_suspected(healthy: Case, tmp_path: Path) -> None:
    def disturb(store: EpisodeStore) -> None:
        write_array(store, "data/state", store.steps("state") + 1e-3)
        store.group.attrs["versions"] = {**store.info.versions, "mujoco": "9.0.0"}

    case = healthy.copy(tmp_path / "case")
    edit(case, disturb)
    findings = {finding.name: finding.result for finding in examine_dataset(case.data)}
    assert findings["episodes do not replay"].status == "SUSPECTED"
    assert "mujoco 9.0.0" in findings["episodes do not replay"].message


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_sound_data_of_every_task_have_no_finding(task: str, tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", task=task, n=12, noise=0.1 if len(task) % 2 else 0.0)
    findings = [
        finding for finding in examine_dataset(store.path) if finding.result.status in ("CONFIRMED", "SUSPECTED")
    ]
    assert not findings, findings[0]


def test_edited_data_have_the_finding_of_the_edit(healthy: Case, tmp_path: Path) -> None:
    def swap_init_states(store: EpisodeStore) -> None:
        write_array(store, "meta/rand_vec", store.rand_vecs[::-1])

    def move_one_init_state(store: EpisodeStore) -> None:
        init_states = store.rand_vecs
        init_states[7, 3] += 0.02
        write_array(store, "meta/rand_vec", init_states)

    def disturb(store: EpisodeStore) -> None:
        actions = store.steps("action")
        actions[::3] = np.clip(actions[::3] + 0.2, -1, 1)
        write_array(store, "data/action", actions)

    def damage(store: EpisodeStore) -> None:
        store.group["data/distance"][:5] = 0.0  # type: ignore[index]
        store.group.attrs["fingerprint"] = "0" * 64

    for change, name in (
        (swap_init_states, "initial states changed"),
        (move_one_init_state, "inconsistent data"),
        (disturb, "actions offset"),
        (damage, "episodes do not replay"),
    ):
        case = healthy.copy(tmp_path / change.__name__)
        edit(case, change)
        findings = {finding.name: finding for finding in examine_dataset(case.data)}
        assert findings[name].is_fatal, change


def test_the_loss_at_inference_is_the_recorded_validation_loss(healthy: Case) -> None:
    policy, store = Policy.load(healthy.run), EpisodeStore.open(healthy.data)
    from act_kit.datasets.split import split_episodes

    loss = measure_loss(policy, store, split_episodes(store.num_episodes, 0.1, 0)[1])
    assert loss.value == pytest.approx(dict(series(healthy.run, "val/l1"))[policy.metadata.step], rel=1e-4)


def test_the_nearest_demonstration_succeeds_from_its_own_initial_state(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=4)
    assert replay_nearest(store, store.init_states) == [True] * 4
    assert not all(replay_nearest(store, InitialStateDistribution("reach-v3").sample(10, seed=0, stream="evaluate")))


def test_the_report_predicts_with_a_run(healthy: Case, tmp_path: Path) -> None:
    wide = {**ONE_THREAD, "COLUMNS": "250"}  # so that no cell of the table is wrapped
    done = act("report", healthy.data, "--run", healthy.run, "--out", tmp_path / "report", env=wide, check=0)
    assert "replayed from test initial states" in done.stdout
    assert "held out" in done.stdout
    assert "memorizes" not in done.stderr
    assert "Expected success of a policy" in (tmp_path / "report" / "report.html").read_text()


def test_the_report_refuses_a_run_of_other_data(healthy: Case, push_store: EpisodeStore, tmp_path: Path) -> None:
    for store in (push_store, make_dataset(tmp_path / "reach", seed=1)):
        done = act("report", store.path, "--run", healthy.run, "--out", tmp_path / "report", check=2)
        assert "was not trained on" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_prints_and_writes_all_findings_and_exits_with_2(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    (case.run / "metrics.jsonl").write_text(
        (case.run / "metrics.jsonl").read_text().replace('"train/kl"', '"train/kll"')
    )
    done = act("doctor", case.folder, "--out", tmp_path / "findings.json", "--workers", 1, check=2)
    assert "Did you mean 'train/kl'?" in done.stdout.replace("\n", " ")
    assert f"act train --data {case.data}" in json.dumps(json.loads((tmp_path / "findings.json").read_text()))
    assert set(json.loads((tmp_path / "findings.json").read_text())) == {str(case.data), str(case.run)}
    with pytest.raises(CheckpointError, match="neither a run"):
        find_targets(tmp_path / "nothing")


def test_this_machine_can_simulate() -> None:
    done = act("doctor", "--workers", 1, check=0)
    assert "reach-v3 10/10" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("fault", "check", "phrase"),
    [
        (edited_alike, evaluations.repeats, "7 of 40 episodes .* 7 failures are successes.* Rounding has no bias"),
        (evaluated_before_trained, evaluations.of_this_policy, "evaluates other weights .* older than the checkpoint"),
        (
            first_checkpoint_is_best,
            records.best_is_best,
            "the policy of step 300, but training selected that of step 600",
        ),
        (edited_losses, records.as_written, "val/l1.* at step 300 is .* one of them was edited"),
        (edited_losses, inference.same_loss, "the loss at inference differs from the recorded one"),
        (cut_records, records.metrics_complete, "ends at step 350, but the run has a checkpoint of step 600"),
    ],
)
def test_inconsistent_records_and_evaluations_are_confirmed(
    healthy: Case, tmp_path: Path, fault: Callable[[Case], None], check: Callable[[RunCase], Result], phrase: str
) -> None:
    case = healthy.copy(tmp_path / "case")
    fault(case)
    result = run_check(case, check)
    assert (result.status, result.severity) == ("CONFIRMED", "critical")
    assert re.search(phrase, result.message), result.message
    assert "--overwrite" not in result.fix


def test_a_truncated_log_is_no_fault_of_the_checkpoint(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    cut_records(case)
    assert run_check(case, records.best_is_best).status == "UNTESTED"
    assert run_check(case, records.as_written).status == "RULED OUT"
    shutil.rmtree(case.run / "tensorboard")
    assert run_check(case, records.as_written).status == "UNTESTED"


def edit_evaluation(case: Case, *, rows: bool = False, **values: object) -> None:
    """Edit summary.json, or the first row of episodes.csv."""
    if not rows:
        path = case.evaluation / "summary.json"
        write_json(path, {**read_json(path), **values})
        return
    path = case.evaluation / "episodes.csv"
    header, first, *others = path.read_text(encoding="utf-8").splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    row.update({name: str(value) for name, value in values.items()})
    write_text(path, "\r\n".join([header, ",".join(row.values()), *others]) + "\r\n")


@pytest.mark.parametrize(
    "values",
    [
        {"init_state_set": {"kind": "ood", "seed": 0, "num": 40, "num_distinct": 40}},
        {"success_once": {"successes": 40, "num": 40, "value": 1.0, "low": 0.99, "high": 1.0}},
        {"distance": {"initial": 0.2, "min": 0.0, "final": 0.0}},
        {"failures": {"frozen": 1}},
        {"largest_z": 1.0},
        {"rows": True, "success_once": 0},
        {"rows": True, "success_at_end": 1, "success_once": 0, "success_step": ""},
        {"rows": True, "failure_mode": "frozen"},
        {"rows": True, "min_distance": 0.9},
    ],
    ids=str,
)
def test_files_of_an_evaluation_that_contradict_each_other(
    healthy: Case, tmp_path: Path, values: dict[str, object]
) -> None:
    case = healthy.copy(tmp_path / "case")
    if "init_state_set" in values:
        values = {"init_state_set": {**read_json(case.evaluation / "summary.json")["init_state_set"], "kind": "ood"}}
    edit_evaluation(case, **values)  # type: ignore[arg-type]
    result = run_check(case, evaluations.whole)
    assert (result.status, result.severity) == ("CONFIRMED", "critical"), values


def test_edited_baselines_are_not_reproducible(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    baselines = read_json(case.evaluation / "summary.json")["baselines"]
    edit_evaluation(case, baselines={**baselines, "expert": {**baselines["expert"], "successes": 3}})
    assert "the baseline 'expert'" in run_check(case, evaluations.baselines_repeat).message


def test_the_least_plausible_and_random_episodes_of_many_are_run_again(healthy: Case) -> None:
    evaluation = read_evaluation(healthy.evaluation)
    episodes = [evaluation.episodes[i % 40] for i in range(1000)]
    episodes[777] = replace(episodes[0], success_once=True, min_distance=0.4)
    evaluation = replace(evaluation, episodes=episodes)
    sampled, description = evaluations.sample_episodes(evaluation, with_images=False)
    assert 777 in sampled
    assert len(set(sampled)) == 200
    assert "200 of 1000" in description
    assert re.search(r"if 2\d or more of the others were edited, one is found with a probability of 95 %", description)
    episodes[3] = replace(episodes[3], final_distance=0.5)
    assert sampled != evaluations.sample_episodes(evaluation, with_images=False)[0], "the sample depends on the rows"


def test_an_evaluation_in_another_folder_is_found(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    moved = tmp_path / "elsewhere" / "mine"
    act("eval", case.run, "--episodes", 2, "--workers", 1, "baseline_episodes=0", "--out", moved, check=0)
    shutil.rmtree(case.evaluation)
    assert [files.folder for files in RunCase(case.run, 1).evaluations] == [moved]
    assert find_targets(moved) == [moved]
    assert _run_of(moved) == case.run
    shutil.rmtree(moved)
    with pytest.raises(ActKitError, match=f"those in {moved} no longer exist"):
        evaluations.horizon(RunCase(case.run, 1))


def test_a_read_only_run_can_be_evaluated(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    (case.run / "evaluations.jsonl").mkdir()
    record_evaluation(case.checkpoint, tmp_path)


def test_data_of_other_demonstrators_are_not_compared_with_the_expert(healthy: Case, tmp_path: Path) -> None:
    def rename(store: EpisodeStore) -> None:
        store.group.attrs["sources"] = ["teleop:ann"]

    def halve(store: EpisodeStore) -> None:
        for name in ("action", "executed_action"):
            write_array(store, f"data/{name}", store.steps(name) / 2)

    for change, phrase in ((rename, "are by teleop:ann"), (halve, "are the scripted expert's in")):
        case = healthy.copy(tmp_path / change.__name__)
        edit(case, change)
        with pytest.raises(IncomparableError, match=phrase):
            comparable(EpisodeStore.open(case.data), np.arange(50))


def test_only_merged_episodes_with_the_noise_of_new_ones_are_compared(tmp_path: Path) -> None:
    stores = [make_dataset(tmp_path / f"{noise}", n=3, noise=noise) for noise in (0.0, 0.3)]
    stores.append(make_dataset(tmp_path / "longer", n=3, noise=0.3, seed=1, steps_after_success=20))
    parts = [Part(store=store, episodes=np.arange(3)) for store in stores[:2]]
    write_derived(tmp_path / "two", {"": Derivation(parts=parts, command="merge")}, "merge", overwrite=False)
    assert comparable(EpisodeStore.open(tmp_path / "two"), np.arange(6)).tolist() == [3, 4, 5]
    parts = [Part(store=store, episodes=np.arange(3)) for store in (stores[0], stores[2])]
    write_derived(tmp_path / "mixed", {"": Derivation(parts=parts, command="merge")}, "merge", overwrite=False)
    with pytest.raises(IncomparableError, match="has the noise"):
        comparable(EpisodeStore.open(tmp_path / "mixed"), np.arange(3))


def test_a_policy_fails_a_task_only_relative_to_the_expert() -> None:
    def result(successes: int, num: int = 10, expert: int = 10) -> TaskRollouts:
        return TaskRollouts(task="reach-v3", fresh=Rate(successes, num), demonstrated=None, expert=Rate(expert, 10))

    assert not result(0).succeeds
    assert not result(4).succeeds
    assert result(34, 40).succeeds
    assert result(7).succeeds
    assert result(0, expert=0).succeeds, "the expert fails too"


@pytest.mark.parametrize(
    ("overrides", "far"),
    [
        ([], []),
        (["trainer.lr=1e-6"], ["trainer.lr"]),
        (["trainer.lr=0.1", "trainer.steps=700"], ["trainer.lr", "trainer.steps"]),
        (["policy.dropout=0.6"], ["policy.dropout"]),
        (["policy=act_image_small", "trainer.lr=1e-3"], []),
        (["policy=act", "trainer.lr=1e-3"], ["trainer.lr"]),
        (["trainer.ema_decay=0.9999"], ["trainer.ema_decay"]),
        (["policy.kl_weight=0"], ["policy.kl_weight"]),
        (["trainer.batch_size=4", "trainer.grad_clip=0.001"], ["trainer.grad_clip", "trainer.batch_size"]),
        (["policy.dim_model=8"], ["policy.dim_model"]),
        (["trainer.lr=5e-4", "trainer.steps=2000", "policy.chunk_size=32", "policy.dropout=0.1"], []),
    ],
)
def test_settings_far_from_their_preset_are_named(overrides: list[str], far: list[str]) -> None:
    config = with_schedule(compose(TrainConfig, overrides), 6000)
    assert learning.far_from_preset(config, 6000) == far


def test_the_retraining_command_keeps_the_configuration(images_store: EpisodeStore, tmp_path: Path) -> None:
    run = tmp_path / "a run's [1]"
    make_run(run, [images_store.path], ["policy=act_image_small", "policy.cameras=[corner4]", "trainer.lr=2e-4"], {})
    (tmp_path / "a run's [1]-2").mkdir()
    again, flags = retraining(RunCase(run, 1).train_with({}))
    assert again == load_run(run)[0]
    assert flags == {"--data": [str(images_store.path)], "--out": [str(tmp_path / "a run's [1]-3")]}


def test_the_retraining_command_of_a_seed_has_its_own_folder(reach_store: EpisodeStore, tmp_path: Path) -> None:
    run = tmp_path / "five" / "seed-3"
    make_run(run, [reach_store.path], [], {"trainer.seed": 3})
    write_json(tmp_path / "five" / SEEDS, {})
    _, flags = retraining(RunCase(run, 1).train_with({}))
    assert flags["--out"] == [str(tmp_path / "five-seed-3-2")]


def test_losses_on_wrong_demonstrations_are_untested(healthy: Case, tmp_path: Path) -> None:
    case = healthy.copy(tmp_path / "case")
    edit(case, DATA_FAULTS["actions halved"].change)
    run = RunCase(case.run, 1)
    none = Rate(0, 10)
    run.results = [TaskRollouts(task="reach-v3", fresh=none, demonstrated=none, expert=Rate(10, 10))]
    assert learning.under_trained(run).status == "UNTESTED"
    assert learning.generalizes(run).status == "UNTESTED"
    result = learning.interpretation(run)
    assert f"the demonstrations in {case.data} are wrong" in result.message
    _, flags = retraining(result.fix)
    assert flags["--data"] == [f"{case.data}-2"]
    assert f"--out {case.data}-2 && " in result.fix


def test_an_expert_that_fails_in_one_task_is_named(healthy: Case) -> None:
    run = RunCase(healthy.run, 1)
    run.expert_rates = {"reach-v3": Rate(10, 10), "push-v3": Rate(3, 10)}
    result = consistency.expert_succeeds(run)
    assert result.severity == "critical"
    assert "push-v3 3/10" in result.message
    assert "reach-v3" not in result.message


def test_a_failing_task_without_data_is_an_error(healthy: Case) -> None:
    run = RunCase(healthy.run, 1)
    run.results = [TaskRollouts(task="push-v3", fresh=Rate(0, 10), demonstrated=None, expert=Rate(10, 10))]
    for check in (learning.under_trained, learning.interpretation):
        with pytest.raises(DatasetError, match="names no dataset of it"):
            check(run)
