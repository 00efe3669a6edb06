"""The doctor, the report and the training name faults of demonstrations, and accept sound ones."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from act_kit.collection.collect import collect
from act_kit.collection.verify import replay
from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity import soundness
from act_kit.diversity.faults import KINDS
from act_kit.diversity.first_observations import measure_dataset
from act_kit.diversity.soundness import check_soundness
from act_kit.doctor.case import DatasetCase
from act_kit.doctor.data import CHECKS
from act_kit.doctor.finding import Result, examine
from act_kit.overrides import compose
from tests.conftest import SERIAL, act, make_dataset
from tests.doctor.data_faults import ACTIONS, DATA_FAULTS, change_steps, noisy, scale_columns, write_array

SOURCES = {"reach-v3": 0.0, "pick-place-v3": 0.2}
"""Tasks with the noise of their demonstrations."""

NOISELESS = ("executed actions halved",)
"""Faults that noise hides: the action that should have been executed is unknown."""


@pytest.fixture(scope="session", params=SOURCES)
def demonstrations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Return eight demonstrations of a task."""
    folder = tmp_path_factory.mktemp(request.param)
    return make_dataset(folder / "data", task=request.param, n=8, noise=SOURCES[request.param])


def edited(store: EpisodeStore, change: Callable[[EpisodeStore], None], folder: Path) -> EpisodeStore:
    """Copy a dataset, change the copy and recompute its fingerprint."""
    shutil.copytree(store.path, folder)
    change(EpisodeStore.open(folder, writable=True))
    EpisodeStore.open(folder, writable=True).finish()
    return EpisodeStore.open(folder)


def test_sound_demonstrations_have_no_fault_and_the_scope_is_reported(demonstrations: EpisodeStore) -> None:
    sound = check_soundness(demonstrations)
    assert sound.faults == []
    assert (sound.num_replayed, sound.num_queried, sound.num_states) == (8, 8, demonstrations.num_steps)
    findings = examine(DatasetCase(demonstrations.path), CHECKS)
    assert {finding.result.status for finding in findings} <= {"RULED OUT", "UNTESTED"}, findings[0].result.message
    ruled_out = {finding.name: finding.result for finding in findings}
    for kind in KINDS:
        assert ruled_out[kind].status == "RULED OUT"
        assert f"8 of 8 episodes were replayed, the expert was queried on 8 ({sound.num_states} states)" in (
            ruled_out[kind].message
        )


@pytest.mark.parametrize("name", DATA_FAULTS)
def test_a_fault_has_its_name(
    demonstrations: EpisodeStore, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    fault = DATA_FAULTS[name]
    if demonstrations.info.noise and name in NOISELESS:
        pytest.skip("noise hides it")
    store = edited(demonstrations, fault.change, tmp_path / "data")
    case = DatasetCase(store.path)
    first = examine(case, CHECKS)[0]
    cells = [f"{name}, {store.info.task}", first.name, f"{first.result.status}, {first.result.severity}"]
    record_property("row", cells)
    assert first.name == fault.found_as, first.result.message
    assert first.is_fatal
    assert first.result.evidence
    assert first.result.fix
    assert case.diversity.verdict.startswith(f"FAIL: {first.result.message}")


@pytest.mark.e2e
def test_report_and_train_name_the_fault(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    store = edited(demonstrations, DATA_FAULTS["actions halved"].change, tmp_path / "data")
    done = act("report", store.path, "--out", tmp_path / "report", check=2)
    assert "times a factor (0.5" in done.stdout
    assert "sound demonstrations" in done.stdout
    assert "times a factor (0.5" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    done = act("train", "--data", store.path, "--out", tmp_path / "run", check=2)
    assert "times a factor (0.5" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_the_scope_names_the_sample_of_a_large_dataset(
    demonstrations: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_MAX_FULL_CHECK", 5)
    monkeypatch.setattr(soundness, "_NUM_SAMPLED", 4)
    sound = check_soundness(demonstrations)
    assert sound.scope.startswith("4 of 8 episodes were replayed")
    halved = edited(demonstrations, DATA_FAULTS["actions halved"].change, tmp_path / "data")
    (finding,) = [f for f in measure_dataset(halved).findings if f.about == "demonstrations"]
    assert finding.text.startswith("4 of 4 checked demonstrations (of 8) (episodes 0, 2, 5, …) have actions")
    one = edited(demonstrations, DATA_FAULTS["one episode's actions halved"].change, tmp_path / "one")
    assert check_soundness(one).faults == []
    assert [fault.episodes for fault in check_soundness(one, of_all=True).faults] == [[6]]


def test_replayed_demonstrations_are_not_compared_with_the_expert(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    flags = {
        "task": demonstrations.info.task,
        "n": 4,
        "demonstrator": "replay",
        "replay.dataset": str(demonstrations.path),
    }
    store = collect(compose(CollectConfig, flags=flags), tmp_path / "data", executor=SERIAL)
    sound = check_soundness(store)
    assert sound.faults == []
    assert (sound.num_replayed, sound.num_queried) == (4, 0)
    assert "replay of scripted) cannot be queried" in sound.scope
    labels = edited(store, lambda copy: change_steps(copy, ["action"], noisy), tmp_path / "noisy")
    assert [fault.kind for fault in check_soundness(labels).faults] == ["labels are noisy"]
    states = edited(store, DATA_FAULTS["hand in millimeters"].change, tmp_path / "states")
    assert [fault.kind for fault in check_soundness(states).faults] == ["states in another unit"]
    both = edited(store, lambda copy: change_steps(copy, ACTIONS, scale_columns(slice(4), 0.5)), tmp_path / "both")
    assert [fault.kind for fault in check_soundness(both).faults] == ["episodes do not replay"]


def test_noise_is_compared_with_the_stated_one(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=4, noise=0.1)

    def result(folder: Path) -> Result:
        (finding,) = [each for each in examine(DatasetCase(folder), CHECKS) if each.name.startswith("labels differ")]
        return finding.result

    assert result(store.path).status == "RULED OUT"
    assert result(store.path).message.startswith("The executed actions are the labels with noise of 0.1")
    labels, executed = store.steps("action"), store.steps("executed_action")
    for name, values in (("none", labels), ("doubled", labels + 2 * (executed - labels))):
        change = partial(write_array, name="data/executed_action", values=values)
        wrong = result(edited(store, change, tmp_path / name).path)
        assert wrong.severity == "critical"
        assert wrong.message.endswith("although the dataset states noise of 0.1.")


def test_rounding_of_another_processor_is_no_fault(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rounded = edited(
        demonstrations,
        lambda copy: change_steps(
            copy, ["state", "distance"], lambda x: x + rng.choice([-1, 0, 1], x.shape) * 2.0**-52
        ),
        tmp_path / "rounded",
    )
    assert check_soundness(rounded).faults == []
    results = replay(rounded, executor=SERIAL)
    assert {tuple(result.rounded) for result in results} == {("state", "distance")}
    assert {result.first_difference for result in results} == {None}
    moved = edited(
        demonstrations, lambda copy: change_steps(copy, ["state"], lambda state: state + 1e-9), tmp_path / "moved"
    )
    assert check_soundness(moved).faults
    assert {result.field for result in replay(moved, executor=SERIAL)} == {"state"}


def test_a_difference_with_other_versions_is_only_a_warning(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    def disturb(store: EpisodeStore) -> None:
        change_steps(store, ["state"], lambda state: state + 1e-7)
        store.group.attrs["versions"] = {**store.info.versions, "mujoco": "9.0.0"}

    store = edited(demonstrations, disturb, tmp_path / "data")
    (fault,) = check_soundness(store).faults
    assert fault.kind == "episodes do not replay"
    assert not fault.is_certain
    assert "mujoco 9.0.0" in fault.text
    assert {f.level for f in measure_dataset(store).findings if f.about == "demonstrations"} == {"WARN"}


def test_changed_physics_is_a_fault(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    store = edited(
        demonstrations, lambda copy: change_steps(copy, ["physics"], lambda p: np.roll(p, 1, axis=0)), tmp_path / "data"
    )
    (fault,) = check_soundness(store).faults
    assert fault.kind == "physics changed"


def test_a_fix_filters_few_faulty_episodes_and_collects_many_again(
    demonstrations: EpisodeStore, tmp_path: Path
) -> None:
    (tmp_path / "it's-2").mkdir()
    halve = scale_columns(slice(4), 0.5)
    for episodes, expected in (
        (slice(6, 7), f"act data filter '{tmp_path}/it'\"'\"'s' --where 'episode not in [6]' --out "),
        (slice(4, 8), f"{demonstrations.info.command} --out "),
    ):
        shutil.rmtree(tmp_path / "it's", ignore_errors=True)
        store = edited(
            demonstrations, partial(change_steps, names=ACTIONS, change=halve, episodes=episodes), tmp_path / "it's"
        )
        fix = examine(DatasetCase(store.path), CHECKS)[0].result.fix
        assert fix.startswith(expected)
        assert shlex.split(fix)[-2:] == ["--out", str(tmp_path / "it's-3")]
        assert measure_dataset(store).fix == fix


def test_the_command_of_a_converted_dataset_makes_it_again(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    def pretend(command: str) -> str:
        store = EpisodeStore.open(demonstrations.path)
        store.info = replace(store.info, command=command)
        return store.reproduce_command.replace(str(demonstrations.path), "DATA")

    assert pretend("act data convert a.hdf5 old --task 'my task'") == "act data convert a.hdf5 DATA-2 --task 'my task'"
    assert pretend("act data merge a 'b c'") == "act data merge a 'b c' --out DATA-2"
    assert pretend("act collect 'torn") == "act collect 'torn --out DATA-2"


def test_an_initial_state_that_is_not_a_number_is_a_fault(demonstrations: EpisodeStore, tmp_path: Path) -> None:
    def lose(store: EpisodeStore) -> None:
        init_states = store.rand_vecs
        init_states[2, 1] = np.nan
        write_array(store, "meta/rand_vec", init_states)

    first = examine(DatasetCase(edited(demonstrations, lose, tmp_path / "data").path), CHECKS)[0]
    assert first.name == "initial states changed"
    assert first.is_fatal
    assert "NaN" in first.result.message
