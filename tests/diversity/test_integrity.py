"""Integrity findings: every manual edit is reported, and a sound dataset has no findings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from act_kit.datasets.split import split_stores
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.diversity.integrity import check_init_states
from act_kit.diversity.measure import measure_diversity
from act_kit.diversity.reference import draw
from act_kit.diversity.result import DiversityReport
from act_kit.errors import DatasetError
from act_kit.eval.init_state_sets import InitialStateSet, make_init_state_set
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import get_task
from tests.conftest import act, make_dataset
from tests.test_cli import run

Edit = Callable[[np.ndarray], object]


def edit(store: EpisodeStore, folder: Path, **edits: Edit) -> Path:
    """Copy a dataset and overwrite some of its arrays; ``data_state`` stands for ``data/state``."""
    path = folder / "edited"
    shutil.copytree(store.path, path)
    group = zarr.open_group(path.absolute(), mode="r+")
    for name, change in edits.items():
        array = group[name.replace("_", "/", 1)]
        assert isinstance(array, zarr.Array)
        values = np.asarray(array[:])
        change(values)
        array[:] = values
    return path


def measure_path(path: Path) -> DiversityReport:
    diversity = measure_diversity(EpisodeStore.open(path))
    json.dumps(diversity.to_dict(), allow_nan=False)
    return diversity


def put(where: Any, value: Any) -> Edit:
    def change(values: np.ndarray) -> None:
        values[where] = value

    return change


GOAL = (slice(None), slice(36, 39))
EDITS: dict[str, tuple[dict[str, Edit], str, str]] = {
    "a NaN state": ({"data_state": put((70, 3), np.nan)}, "FAIL", "has values that are not finite"),
    "an infinite action": ({"data_action": put((70, 3), np.inf)}, "FAIL", "has values that are not finite"),
    "a NaN initial state": ({"meta_rand_vec": put((2, 1), np.nan)}, "FAIL", "(2) has values that"),
    "an action out of range": ({"data_action": put((70, 0), 1.01)}, "FAIL", "has actions outside [-1, 1]"),
    "a hidden goal": ({"data_state": put(GOAL, 0.0)}, "FAIL", "have a hidden goal"),
    "no success": ({"data_success": put(slice(0, 60), False)}, "FAIL", "has no successful step"),
    "a constant object": (
        {"data_state": put((slice(None), slice(4, 6)), 0.1)},
        "FAIL",
        "all states have the same object x, object y",
    ),
    "a slightly moved initial state": (
        {"meta_rand_vec": put((4, 3), 0.01)},
        "FAIL",
        "10 demonstrations (4) has a first state",
    ),
    "initial states in another order": (
        {"meta_rand_vec": lambda values: values.__setitem__(slice(None), values[::-1].copy())},
        "FAIL",
        "10 demonstrations (0, 1, 2, …) have a first state that is not that of its recorded initial state",
    ),
    "initial states outside the box": (
        {"meta_rand_vec": put((slice(0, 2), 0), 0.9)},
        "FAIL",
        "20 % of the initial states lie outside",
    ),
    "other physics": ({"data_physics": put((0, slice(5)), 0.3)}, "WARN", "has recorded physics that are not those"),
    "another reached distance": ({"data_distance": put(3, 0.3)}, "WARN", "does not match its fingerprint"),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_reported(name: str, reach_store: EpisodeStore, tmp_path: Path) -> None:
    edits, level, text = EDITS[name]
    diversity = measure_path(edit(reach_store, tmp_path, **edits))
    assert diversity.level == level
    assert any(text in finding.text for finding in diversity.findings), diversity.findings
    assert any("fingerprint" in finding.text for finding in diversity.findings)


def test_a_sound_dataset_has_no_findings(reach_store: EpisodeStore) -> None:
    diversity = measure_diversity(reach_store)
    assert diversity.findings == []
    assert (diversity.num_leaked, diversity.num_validation) == (0, 1)


def test_a_truncated_last_episode_is_reported_as_damage(reach_store: EpisodeStore, tmp_path: Path) -> None:
    def cut(ends: np.ndarray) -> None:
        ends[-1] -= 20

    path = edit(reach_store, tmp_path, meta_episode_ends=cut)
    with pytest.raises(DatasetError, match="its episode ends do not increase up to its 574 steps"):
        EpisodeStore.open(path)


def test_initial_states_of_another_task_or_too_few_are_refused(reach_store: EpisodeStore, tmp_path: Path) -> None:
    path = edit(reach_store, tmp_path)
    group = zarr.open_group(path.absolute(), mode="r+")
    array = group["meta/rand_vec"]
    assert isinstance(array, zarr.Array)
    array.resize((7, 6))
    with pytest.raises(DatasetError, match="meta/rand_vec has 7 rows, 10 were committed"):
        EpisodeStore.open(path)
    array.resize((10, 6))
    group.attrs["task"] = "door-open-v3"
    with pytest.raises(DatasetError, match=r"expected \(10, 3\) for 10 demonstrations of door-open-v3"):
        measure_diversity(EpisodeStore.open(path))


@pytest.mark.parametrize("moved", [0.0, 1e-5])
def test_copies_and_near_copies_stay_on_one_side_of_the_split(
    moved: float, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    def copy(values: np.ndarray) -> None:
        values[1::2] = values[::2] + moved

    path = edit(reach_store, tmp_path, meta_rand_vec=copy)
    diversity, ((train, val),) = measure_path(path), split_stores([EpisodeStore.open(path)], 0.1, 0)
    assert diversity.num_apart == 5
    assert (diversity.num_leaked, diversity.num_validation) == (0, 2)
    assert val[0] // 2 == val[1] // 2
    assert len(train) == 8
    expected = "repeat the initial state of another" if not moved else "5 of 10 demonstrations are near copies"
    assert any(expected in finding.text for finding in diversity.findings), diversity.findings


def test_trajectories_that_are_in_the_training_split_are_leaks(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """The initial states differ, so the split does not group the copies."""
    first, *others = reach_store.iter_episodes()
    copies = [first, *(replace(first, init_state=other.init_state) for other in others)]
    diversity = measure_diversity(write_dataset(tmp_path / "data", reach_store.info, copies))
    assert (diversity.num_leaked, diversity.num_validation) == (1, 1)
    assert any("validation demonstrations of act train" in finding.text for finding in diversity.findings)


def test_copies_stay_on_one_side_across_datasets_and_without_initial_states(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    """A subset of one dataset, in another order, is repeated in the other."""
    recordings = list(reach_store.iter_episodes())
    part = write_dataset(tmp_path / "part", reach_store.info, recordings[::-1][:6])
    (_, val), (_, val_of_part) = split_stores([reach_store, part], 0.3, 0)
    assert sorted(9 - val_of_part) == [episode for episode in val if episode >= 4]
    without_init_states = [replace(recording, init_state=None) for recording in [*recordings, *recordings]]
    ((_, val),) = split_stores([write_dataset(tmp_path / "twice", reach_store.info, without_init_states)], 0.2, 0)
    assert sorted(val % 10) == sorted(2 * list(set(val % 10)))


def test_an_expert_that_ignores_the_goal_is_not_a_leak(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", task="plate-slide-side-v3", n=10)
    diversity = measure_diversity(store)
    assert diversity.duplicate_trajectories > 0
    assert diversity.findings == []


def test_quality_of_a_scripted_expert(reach_store: EpisodeStore) -> None:
    (quality,) = measure_diversity(reach_store).quality
    assert (quality.source, quality.num, quality.num_distinct) == ("scripted", 10, 10)
    assert quality.min_steps <= quality.steps <= quality.max_steps
    assert quality.path_efficiency is not None
    assert 0.5 < quality.path_efficiency <= 1
    assert quality.idle_fraction < 0.05
    assert quality.gripper_switches == 0


def test_quality_detects_idle_steps_and_noise(reach_store: EpisodeStore, tmp_path: Path) -> None:
    def freeze(states: np.ndarray) -> None:
        states[1:] = np.where(np.arange(1, len(states))[:, None] % 2, states[:-1], states[1:])

    (before,) = measure_diversity(reach_store).quality
    noisy = np.random.default_rng(0).uniform(-1, 1, (reach_store.num_steps, 4))
    (after,) = measure_path(edit(reach_store, tmp_path, data_state=freeze, data_action=put(slice(None), noisy))).quality
    assert after.gripper_switches > 5
    assert after.jerk is not None
    assert before.jerk is not None
    assert after.jerk > 5 * before.jerk
    assert after.action_variance is not None
    assert 0.6 < after.action_variance < 1.4


@pytest.mark.e2e
def test_report_on_the_command_line(
    reach_store: EpisodeStore, one_init_state_store: EpisodeStore, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(reach_store.path, folder / "healthy")
    shutil.copytree(one_init_state_store.path, folder / "copies")
    done = act("report", folder, check=2)
    assert "the same initial state" in done.stdout
    overview = (tmp_path / "both-report" / "report.html").read_text()
    assert 'href="copies/report.html"' in overview
    page = (tmp_path / "both-report" / "healthy" / "report.html").read_text()
    assert page.count("<svg") == 3 + 5 + 1
    assert "more random initial states" in page
    written = json.loads((tmp_path / "both-report" / "diversity.json").read_text())
    assert {name: values["level"] for name, values in written.items()} == {"healthy": "OK", "copies": "FAIL"}


def test_report_against_an_evaluation_set(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init_states = (
        *InitialStateDistribution("reach-v3").sample(30, seed=4, stream="evaluate"),
        *reach_store.init_states[:2],
    )
    InitialStateSet(task="reach-v3", kind="test", seed=4, init_states=init_states).save(tmp_path / "init_states.json")
    flags = ("--reference", tmp_path / "init_states.json", "--out", tmp_path / "out")
    code, out, _ = run(monkeypatch, capsys, "report", reach_store.path, *flags)
    assert code == 0
    assert "2 of the demonstrated initial states are in the evaluation set" in out
    make_init_state_set("push-v3", "test", 3, 0, []).save(tmp_path / "push.json")
    code, _, err = run(monkeypatch, capsys, "report", reach_store.path, "--reference", tmp_path / "push.json")
    assert code == 2
    assert "holds initial states of push-v3; the data are of reach-v3" in err


SETTLES_DIFFERENTLY = {
    "disassemble-v3": [11, 16, 115, 0, 1],
    "door-lock-v3": [177, 178, 0, 1],
    "door-unlock-v3": [177, 178, 328, 0, 1],
    "hammer-v3": [0, 1, 2],
}
"""Indices into 400 initial states, some of which differ from the linear map of the others."""


@pytest.mark.parametrize("name", SETTLES_DIFFERENTLY)
def test_initial_states_where_an_object_settles_differently_are_healthy(name: str) -> None:
    """In the first three tasks, up to 4 % of the first states differ from the linear map, but agree with a reset."""
    task, simulator = get_task(name), Simulator(name)
    drawn = draw(task, 400, seed=77)[SETTLES_DIFFERENTLY[name]]
    recorded = [at_reset(simulator, InitialState.of(name, init_state)) for init_state in drawn]
    assert check_init_states(task, recorded) == []
    recorded[2] = replace(recorded[2], state=recorded[2].state + 2e-4)
    (finding,) = check_init_states(task, recorded)
    assert finding.level == "FAIL"
    assert f"1 of {len(recorded)} demonstrations (2) has a first state" in finding.text


def at_reset(simulator: Simulator, init_state: InitialState) -> Episode:
    """Record one step with a zero action."""
    state, physics, zeros = simulator.reset(init_state).copy(), simulator.physics(), np.zeros((1, 4), dtype=np.float32)
    return Episode(
        init_state=init_state,
        attempt=0,
        source="scripted",
        state=state[None],
        action=zeros,
        executed_action=zeros,
        reward=None,
        success=np.ones(1, dtype=bool),
        distance=np.zeros(1),
        physics=physics[None],
    )
