"""Evaluations: sets that cannot be mixed up, numbers with intervals, controls that read them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from statistics import NormalDist

from act_kit.config import EvalConfig, compose
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError, StartError
from act_kit.eval.evaluate import Episode, Evaluation, evaluate
from act_kit.eval.evalset import EvalSet, check_disjoint, evalset_from, make_evalset
from act_kit.eval.report import summarise, write_results
from act_kit.eval.rollout import Outcome
from act_kit.eval.rollout import roll_on
from act_kit.eval.selection import make_selector
from act_kit.eval.statistics import Rate
from act_kit.eval.video import choose
from act_kit.policy.policy import Policy
from act_kit.sim.starts import Start, StartLaw
from act_kit.sim.vector import VectorSimulator

CONFIG = compose("eval", EvalConfig, ["episodes=3", "control_episodes=2", "demonstrated_episodes=2"])


@pytest.fixture(scope="module")
def evaluation(tiny_run: Path) -> Evaluation:
    policy = Policy.load(tiny_run)
    with VectorSimulator("reach-v3", 1) as simulators:
        return evaluate(policy, evalset_from("fresh", policy.contract, CONFIG), CONFIG, roll=roll_on(simulators))


def outcome(success: bool, start: Start) -> Outcome:
    return Outcome(
        start=start, success=np.array([False, success]), distance=np.array([0.3, 0.2, 0.0 if success else 0.1]),
        actions=np.zeros((2, 4), np.float32), query_steps=np.array([0]), query_states=np.zeros((1, 39)),
        clip_fraction=0.0,
    )  # fmt: skip


def test_wilson_interval_against_its_formula() -> None:
    z = NormalDist().inv_cdf(0.975)
    for k, n in ((0, 30), (30, 30), (97, 100), (3, 7)):
        p, center = k / n, (k / n + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        assert Rate(k, n).interval == pytest.approx((center - half, center + half), abs=1e-9)
    assert str(Rate(0, 30)) == "0/30 [0, 11 %]"


def test_a_saved_set_comes_back_to_the_bit_and_changes_are_found(tmp_path: Path) -> None:
    evalset = make_evalset("push-v3", "fresh", 20, 3, [])
    path = tmp_path / "starts.json"
    evalset.save(path)
    assert EvalSet.load(path) == evalset
    values = json.loads(path.read_text())
    values["starts"][4][0] += 1e-9
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="do not match its hash"):
        EvalSet.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="is not an evaluation set"):
        EvalSet.load(path)
    with pytest.raises(DatasetError, match="neither a file nor one of fresh, dataset, grid.* Did you mean 'fresh'"):
        EvalSet.load(Path("frehs"))


def test_fresh_starts_are_neither_demonstrated_nor_those_that_select(reach_store: EpisodeStore) -> None:
    fresh = make_evalset("reach-v3", "fresh", 100, 0, [])
    check_disjoint(fresh, reach_store.rand_vecs.tolist())
    selection = StartLaw("reach-v3").sample(100, seed=0, stream="select")
    assert not set(fresh.starts) & set(selection)


def test_demonstrated_starts_are_refused_unless_that_is_the_question(reach_store: EpisodeStore) -> None:
    seen = reach_store.rand_vecs.tolist()
    leaked = replace(make_evalset("reach-v3", "fresh", 5, 0, []), starts=(*reach_store.starts[:2],))
    with pytest.raises(StartError, match="2 of the 2 evaluation starts were demonstrated"):
        check_disjoint(leaked, seen)
    check_disjoint(make_evalset("reach-v3", "dataset", 4, 0, seen), seen)


def test_another_tasks_starts_are_refused(tiny_policy: Policy) -> None:
    with VectorSimulator("reach-v3", 1) as simulators, pytest.raises(StartError, match="trained on reach-v3.*push-v3"):
        evaluate(tiny_policy, make_evalset("push-v3", "fresh", 2, 0, []), CONFIG, roll=roll_on(simulators))


def test_controls_run_on_the_same_starts(evaluation: Evaluation, reach_store: EpisodeStore) -> None:
    same_starts = list(evaluation.evalset.starts[:2])
    for who in ("expert", "nothing", "random"):
        assert [control.start for control in evaluation.controls[who]] == same_starts
    assert all(control.success_once for control in evaluation.controls["expert"])
    assert {control.start for control in evaluation.controls["demonstrated starts"]} <= set(reach_store.starts)


def test_distance_to_the_demonstrations_and_z_are_reported(evaluation: Evaluation, reach_store: EpisodeStore) -> None:
    for episode in evaluation.episodes:
        assert 0 < episode.nearest_demonstration < 5**0.5
        assert 0 < episode.largest_z < 100


def test_results_on_disk(evaluation: Evaluation, tiny_policy: Policy, tmp_path: Path) -> None:
    page = write_results(evaluation, tiny_policy, tmp_path, {})
    rows = list(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert tuple(map(float, rows[1]["start"].split())) == evaluation.evalset.starts[1].rand_vec
    for row, result in zip(rows, evaluation.outcomes, strict=True):
        assert row["success_once"] == str(int(result.success_once))
        assert float(row["final_distance"]) == pytest.approx(result.distance[-1], abs=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(summarise(evaluation, tiny_policy)))
    assert summary["evalset"]["hash"] == EvalSet.load(tmp_path / "starts.json").hash
    assert "success (once, the benchmark" in page.read_text()


def test_the_reading_names_uncovered_starts(evaluation: Evaluation) -> None:
    starts = StartLaw("reach-v3").sample(50, seed=0, stream="evaluate")
    failing = [
        Episode(outcome=outcome(False, start), nearest_demonstration=0.5, largest_z=3.0) for start in starts
    ]
    shown = [outcome(True, start) for start in starts[:20]]
    expert = [outcome(True, start) for start in starts[:20]]
    uncovered = replace(evaluation, episodes=failing, controls={"expert": expert, "demonstrated starts": shown})
    assert "do not cover the starts" in uncovered.reading
    everywhere = replace(uncovered, controls={"expert": expert, "demonstrated starts": [outcome(False, s) for s in starts]})
    assert everywhere.reading == ""
    impossible = replace(uncovered, controls={"expert": [outcome(False, s) for s in starts], "demonstrated starts": shown})
    assert "The scripted expert itself succeeds only 0/50" in impossible.reading


def test_selection_reports_success_with_its_interval(tiny_policy: Policy) -> None:
    starts = StartLaw("reach-v3").sample(2, seed=0, stream="select")
    with VectorSimulator("reach-v3", 1) as simulators:
        trial = make_selector(roll_on(simulators), starts)(tiny_policy)
    assert trial.num == 2
    assert trial.low <= trial.successes / 2 <= trial.high


def test_videos_show_failures_first() -> None:
    starts = StartLaw("reach-v3").sample(5, seed=0, stream="evaluate")
    outcomes = [outcome(i not in (1, 3), start) for i, start in enumerate(starts)]
    assert choose(outcomes, 3) == [1, 3, 0]
