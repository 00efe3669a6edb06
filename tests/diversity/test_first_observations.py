"""Data without initial states: diversity of their first observations, training if they fit, refusal if not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.datasets.images import RenderedFrames
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.diversity.first_observations import FirstObservations, known_init_states, measure_dataset
from act_kit.diversity.measure import measure_diversity
from act_kit.doctor.diagnose import examine_dataset, examine_run
from act_kit.policies.policy import Policy
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import RenderSettings
from act_kit.sim.tasks import TASKS
from tests.conftest import TINY, act, make_dataset

NUM, STEPS, SIZE = 50, 12, 32


def aloha(
    path: Path, template: EpisodeStore, *, poses: int = 1, cubes: int = 0, num: int = NUM, damage: bool = False
) -> EpisodeStore:
    """Write ``num`` episodes of two arms in ``poses`` poses; with ``cubes``, images of a cube in as many places."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(poses, 14))
    recordings = []
    for i in range(num):
        state = np.cumsum(rng.normal(size=(STEPS, 14)), axis=0)
        state += first[i % poses] - state[0]
        if damage and i == 3:
            state[5, 2] = np.nan
        images = {}
        if cubes:
            # Sensor noise does not make images distinct.
            frames = rng.normal(120, 2, (STEPS, SIZE * 4, SIZE * 4, 3)).round().astype(np.uint8)
            place = 2 * (i % cubes)
            frames[:, place : place + 8, 40:48] = 250
            images = {"top": frames}
        steps: dict[str, Any] = {"state": state, "action": rng.normal(size=(STEPS, 14)).astype(np.float32) * 3}
        recordings.append(Episode(**steps, source="human", init_state=None, images=images, attempt=i))
    info = replace(template.info, task="aloha", demonstrator="human", command="act data convert x", control_hz=50)
    size = RenderSettings(height_px=SIZE * 4, width_px=SIZE * 4)
    cameras = {"top": RenderedFrames(settings=size, renderer="a camera")} if cubes else None
    return write_dataset(path, info, recordings, cameras=cameras)


def imported(path: Path, store: EpisodeStore, keep: Sequence[str] = ("state", "action")) -> EpisodeStore:
    """Write a Meta-World dataset as imported from a format with fewer fields."""
    recordings = []
    for recording in store.iter_episodes():
        steps: dict[str, Any] = {name: recording.steps[name] for name in keep}
        recordings.append(Episode(source="human", attempt=recording.attempt, **steps))
    return write_dataset(path, replace(store.info, demonstrator="human"), recordings)


def measure_first(store: EpisodeStore) -> FirstObservations:
    measured = measure_dataset(store)
    assert isinstance(measured, FirstObservations)
    json.dumps(measured.to_dict(), allow_nan=False)
    return measured


@pytest.mark.e2e
def test_images_distinguish_demonstrations_with_equal_states(reach_store: EpisodeStore, tmp_path: Path) -> None:
    seen = measure_first(aloha(tmp_path / "seen", reach_store, cubes=NUM))
    assert (seen.num_distinct_states, seen.num_distinct_frames) == (1, {"top": NUM})
    assert seen.level == "OK"
    assert "50 distinct first observations; there is no known distribution to compare them with" in seen.verdict
    assert seen.frozen == list(range(14))
    blind = measure_first(aloha(tmp_path / "blind", reach_store))
    assert blind.level == "FAIL"
    assert "all 50 demonstrations begin from the same observation" in blind.verdict
    same = measure_first(aloha(tmp_path / "same", reach_store, cubes=1))
    assert same.level == "FAIL"
    assert "first images (top)" in same.verdict


def test_few_first_observations_are_reported(reach_store: EpisodeStore, tmp_path: Path) -> None:
    few = measure_first(aloha(tmp_path / "few", reach_store, poses=3))
    assert (few.level, few.num_distinct) == ("WARN", 3)
    assert "only 3 distinct observations" in few.verdict
    assert measure_first(aloha(tmp_path / "many", reach_store, poses=20)).level == "OK"
    assert "too few to assess" in measure_first(aloha(tmp_path / "tiny", reach_store, poses=4, num=4)).verdict
    broken = measure_first(aloha(tmp_path / "broken", reach_store, poses=NUM, damage=True))
    assert broken.level == "FAIL"
    assert "(3) has values that are not finite" in broken.verdict


def test_copies_are_reported(reach_store: EpisodeStore, tmp_path: Path) -> None:
    original = aloha(tmp_path / "original", reach_store, poses=NUM)
    copies = write_dataset(tmp_path / "copies", original.info, [*original.iter_episodes(), *original.iter_episodes()])
    assert measure_first(copies).duplicate_trajectories == 0.5
    assert "50 % of the demonstrations are bit-exact copies" in measure_first(copies).verdict


@pytest.mark.parametrize("task", ["drawer-open-v3", "pick-place-v3"])
def test_first_states_of_metaworld_determine_the_initial_states(task: str, tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", task=task, n=4)
    known = known_init_states(imported(tmp_path / "imported", store))
    assert known is not None
    dims = TASKS[task].informative
    np.testing.assert_allclose(known[:, dims], store.rand_vecs[:, dims], atol=1e-6)


def test_the_height_of_a_goal_without_effect_is_sampled(push_store: EpisodeStore, tmp_path: Path) -> None:
    """Meta-World replaces the height of push-v3's goal by that of the puck."""
    known = known_init_states(imported(tmp_path / "push", push_store))
    assert known is not None
    np.testing.assert_allclose(known[:, [0, 1, 3, 4]], push_store.rand_vecs[:, [0, 1, 3, 4]], atol=1e-6)
    assert len(set(known[:, 5])) == 4
    assert (known[:, 5] >= TASKS["push-v3"].low[5]).all()
    assert (known[:, 5] <= TASKS["push-v3"].high[5]).all()


def test_initial_states_that_do_not_follow_from_first_states_are_unknown(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    """In box-close-v3 the cover settles; moved states agree with no initial state."""
    store = imported(tmp_path / "box", make_dataset(tmp_path / "data", task="box-close-v3", n=2))
    assert known_init_states(store) is None
    notes = measure_first(store).notes
    assert "No initial states were recorded, so their coverage of box-close-v3 was not measured." in notes
    moved = [replace(r, init_state=None, state=r.state + 0.01) for r in reach_store.iter_episodes()]
    assert known_init_states(write_dataset(tmp_path / "moved", reach_store.info, moved)) is None


def test_imported_metaworld_data_are_compared_with_the_tasks_distribution(
    reach_store: EpisodeStore, one_init_state_store: EpisodeStore, tmp_path: Path
) -> None:
    measured = measure_first(imported(tmp_path / "test", reach_store))
    assert measured.level == measure_diversity(reach_store).level == "OK"
    assert "their initial states cover the initial states of reach-v3" in measured.verdict
    fixed = measure_first(imported(tmp_path / "fixed", one_init_state_store))
    assert fixed.level == "FAIL"
    assert "begin from the same initial state" in fixed.verdict


@pytest.mark.e2e
def test_foreign_data_are_reported_and_diagnosed_but_not_trained_on(reach_store: EpisodeStore, tmp_path: Path) -> None:
    path = aloha(tmp_path / "data", reach_store, cubes=NUM).path
    done = act("report", path, "--out", tmp_path / "report", check=0)
    assert "OK: 50 demonstrations begin from 50 distinct first observations" in done.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert re.search("<td[^>]*>distinct first images of top</td><td[^>]*>50 of 50</td>", page)
    assert json.loads((tmp_path / "report" / "diversity.json").read_text())["level"] == "OK"
    act("report", aloha(tmp_path / "blind", reach_store).path, check=2)
    findings = examine_dataset(path)
    assert {finding.result.status for finding in findings} == {"RULED OUT", "UNTESTED"}
    assert not [finding.result.message for finding in findings if "itself failed" in finding.result.message]
    refused = act("train", "--data", path, "--out", tmp_path / "run", check=2)
    (line,) = refused.stderr.splitlines()
    assert "states of 14 and actions of 14 numbers of 'aloha'; training needs states of 39 and actions of 4" in line
    act("data", "info", path, "--verify", check=0)


@pytest.mark.e2e
def test_imported_metaworld_data_train_and_are_evaluated(reach_store: EpisodeStore, tmp_path: Path) -> None:
    store, run = imported(tmp_path / "data", reach_store), tmp_path / "run"
    act("train", "--data", store.path, "--out", run, "--device", "cpu", "--workers", 1, *TINY, check=0)
    assert Policy.load(run).metadata.init_states_of("reach-v3") == []
    act("eval", run, "--episodes", 3, "--workers", 1, "baseline_episodes=1", check=0)
    summary = json.loads((run / "eval-test" / "summary.json").read_text())
    assert summary["success_by_distance_to_nearest_demo"] == []
    assert "demonstrated initial states" not in summary["baselines"]
    assert (
        "the initial states of the demonstrations were not recorded" in (run / "eval-test" / "report.html").read_text()
    )
    refused = act("eval", run, "--init-states", "train", check=2)
    assert "were not recorded. Fix: --init-states test" in refused.stderr.replace("\n", " ")
    findings = {finding.name: finding.result for finding in examine_run(run, num_workers=1)}
    assert not [result.message for result in findings.values() if "itself failed" in result.message]
    assert findings["checkpoint of another run"].status == "RULED OUT"
    assert findings["evaluated on training initial states"].status == "UNTESTED"
    assert findings["episodes do not replay"].status == "UNTESTED"
