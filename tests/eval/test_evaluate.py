"""Tests of evaluations: initial-state sets, success rates with intervals, and baselines."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from act_kit.config.evaluation import EvalConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, DatasetError, InitialStateError
from act_kit.eval.evaluate import evaluate_all
from act_kit.eval.files import read_evaluations, write_evaluation
from act_kit.eval.init_state_sets import (
    InitialStateSet,
    Kind,
    check_disjoint,
    init_state_sets_from,
    make_init_state_set,
)
from act_kit.eval.results import PROVENANCE, EpisodeResult, Evaluation, summarize, summarize_all
from act_kit.eval.selection import make_checkpoint_evaluator
from act_kit.overrides import compose
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import write_results
from act_kit.reports.overview import mean_rows, overview_title, task_rows, write_overview
from act_kit.reports.video import select_episodes
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutFunction, RolloutPool
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, stack
from act_kit.statistics import MacroAverageRate, Rate
from tests.eval.untrained import untrained_policy

CONFIG = compose(EvalConfig, ["episodes=3", "baseline_episodes=2", "demonstrated_episodes=2"])


AGENTS = ("policy", "expert", "zero actions", "random", "demonstrated initial states")


def recording(roll: RolloutFunction, records: dict[str, list[Episode]]) -> RolloutFunction:
    """Return a function like ``roll`` that also records the outcomes of each agent, in the order of evaluate."""

    def record(*arguments: Any, **options: Any) -> list[Episode]:
        outcomes = roll(*arguments, **options)
        records.setdefault(AGENTS[len(records)], outcomes)
        return outcomes

    return record


@pytest.fixture(scope="module")
def rollouts() -> dict[str, list[Episode]]:
    """Outcomes of the agents in the evaluation, by name."""
    return {}


@pytest.fixture(scope="module")
def evaluation(tiny_run: Path, rollouts: dict[str, list[Episode]]) -> Evaluation:
    policy = Policy.load(tiny_run)
    (init_state_set,) = init_state_sets_from("test", policy.metadata, CONFIG)
    with RolloutPool(1) as roll:
        return evaluate_all(policy, [init_state_set], CONFIG, roll=recording(roll, rollouts))[0]


@pytest.fixture(scope="module")
def two_tasks(reach_store: EpisodeStore, push_store: EpisodeStore) -> Policy:
    return untrained_policy([reach_store, push_store])


def outcome(success: bool, init_state: InitialState) -> Episode:
    return Episode(
        init_state=init_state,
        success=np.array([False, success]),
        initial_distance=0.3,
        distance=np.array([0.2, 0.0 if success else 0.1]),
        action=np.zeros((2, 4), np.float32),
        executed_action=np.zeros((2, 4), np.float32),
        state=np.zeros((2, 39)),
        last_state=np.zeros(39),
        query_steps=np.array([0]),
    )


def test_wilson_interval_matches_its_formula() -> None:
    z = NormalDist().inv_cdf(0.975)
    for k, n in ((0, 30), (30, 30), (97, 100), (3, 7)):
        p, center = k / n, (k / n + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        assert Rate(k, n).interval == pytest.approx((center - half, center + half), abs=1e-9)
    assert str(Rate(0, 30)) == "0/30 [0, 11 %]"


def test_saved_set_loads_bit_exact_and_changes_are_detected(tmp_path: Path) -> None:
    init_state_set = make_init_state_set("push-v3", "test", 20, 3, [])
    path = tmp_path / "init_states.json"
    init_state_set.save(path)
    assert InitialStateSet.load(path) == init_state_set
    values = json.loads(path.read_text())
    values["init_states"][4][0] += 1e-9
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="do not match its hash"):
        InitialStateSet.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="is not an evaluation set"):
        InitialStateSet.load(path)
    with pytest.raises(DatasetError, match=r"is not a file; choose from: test, train, grid, ood.* Did you mean 'test'"):
        InitialStateSet.load(Path("tesst"))


def test_test_states_are_disjoint_from_demonstrated_and_selection_states(reach_store: EpisodeStore) -> None:
    fresh = make_init_state_set("reach-v3", "test", 100, 0, [])
    check_disjoint(fresh, reach_store.rand_vecs.tolist())
    selection = InitialStateDistribution("reach-v3").sample(100, seed=0, stream="select")
    assert not set(fresh.init_states) & set(selection)


def test_demonstrated_states_are_refused_except_for_kind_train(reach_store: EpisodeStore) -> None:
    seen = reach_store.rand_vecs.tolist()
    leaked = replace(make_init_state_set("reach-v3", "test", 5, 0, []), init_states=(*reach_store.init_states[:2],))
    with pytest.raises(InitialStateError, match="2 of the 2 evaluation initial states of reach-v3 were demonstrated"):
        check_disjoint(leaked, seen)
    check_disjoint(make_init_state_set("reach-v3", "train", 4, 0, seen), seen)


def test_unknown_kind_of_initial_states_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"choose from: test, train, grid, ood, .*\. Did you mean 'test'"):
        make_init_state_set("push-v3", "tst", 2, 0, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["test", "grid", "ood"])
def test_selected_states_lose_their_kind(kind: Kind, tmp_path: Path) -> None:
    drawn = make_init_state_set("push-v3", kind, 30, 5, [])
    cases = {
        "the first ones": (replace(drawn, init_states=drawn.init_states[:20]), kind if kind != "grid" else "file"),
        "the easy ones": (replace(drawn, init_states=drawn.init_states[::2]), "file"),
        "another order": (replace(drawn, init_states=drawn.init_states[::-1]), "file"),
        "another seed": (replace(drawn, seed=6), "file"),
        "another kind": (replace(drawn, kind="ood" if kind != "ood" else "test"), "file"),
    }
    for case, (init_state_set, expected) in cases.items():
        init_state_set.save(tmp_path / "init_states.json")
        assert InitialStateSet.load(tmp_path / "init_states.json").kind == expected, case


@pytest.mark.parametrize("task", ["push-v3", "reach-v3", "drawer-open-v3"])
@pytest.mark.parametrize("moved_m", [0.0, 2e-6])
def test_near_copies_of_demonstrated_states_are_refused(task: str, moved_m: float) -> None:
    fresh = make_init_state_set(task, "test", 40, 0, [])
    seen = stack(InitialStateDistribution(task).sample(50, seed=0, stream="collect"))
    check_disjoint(fresh, seen.tolist())
    for num in (20, 40):
        moved = (*(InitialState.of(task, row + moved_m) for row in seen[:num]), *fresh.init_states[num:])
        with pytest.raises(
            InitialStateError, match=f"{num} of the 40 evaluation initial states of {task} were demonstrated"
        ):
            check_disjoint(replace(fresh, init_states=moved), seen.tolist())


def test_initial_states_of_an_untrained_task_are_refused(tiny_policy: Policy) -> None:
    with RolloutPool(1) as roll, pytest.raises(InitialStateError, match=r"trained on reach-v3; .* is of push-v3"):
        evaluate_all(tiny_policy, [make_init_state_set("push-v3", "test", 2, 0, [])], CONFIG, roll=roll)[0]


def test_disjointness_is_checked_per_task(two_tasks: Policy, reach_store: EpisodeStore) -> None:
    """A demonstrated initial state of reach-v3 is new for push-v3."""
    demonstrated = reach_store.init_states[0]
    as_push = InitialStateSet(
        task="push-v3", kind="test", seed=0, init_states=(InitialState("push-v3", demonstrated.rand_vec),)
    )
    without_baselines = replace(CONFIG, baseline_episodes=0, demonstrated_episodes=0)
    with RolloutPool(1) as roll:
        assert len(evaluate_all(two_tasks, [as_push], without_baselines, roll=roll)[0].episodes) == 1
        as_reach = replace(as_push, task="reach-v3", init_states=(demonstrated,))
        with pytest.raises(
            InitialStateError, match="1 of the 1 evaluation initial states of reach-v3 were demonstrated"
        ):
            evaluate_all(two_tasks, [as_push, as_reach], without_baselines, roll=roll)


def test_evaluating_tasks_together_equals_evaluating_each(two_tasks: Policy, tmp_path: Path) -> None:
    config = replace(CONFIG, episodes=2, baseline_episodes=1, demonstrated_episodes=1)
    init_state_sets = init_state_sets_from("test", two_tasks.metadata, config)
    num_episodes: dict[str, int] = {}
    separate: list[Evaluation] = []
    all_rollouts: dict[str, list[Episode]] = {}
    separate_rollouts: dict[str, list[Episode]] = {name: [] for name in AGENTS}
    with RolloutPool(1) as roll:
        together = evaluate_all(
            two_tasks,
            init_state_sets,
            config,
            roll=recording(roll, all_rollouts),
            on_progress=lambda name, progress, num: num_episodes.update({name: num}),
        )
        for init_state_set in init_state_sets:
            rollouts: dict[str, list[Episode]] = {}
            separate.append(evaluate_all(two_tasks, [init_state_set], config, roll=recording(roll, rollouts))[0])
            for name in AGENTS:
                separate_rollouts[name] += rollouts[name]
    assert num_episodes == {"policy": 4, "expert": 2, "zero actions": 2, "random": 2, "demonstrated initial states": 2}
    assert [evaluation.init_state_set.task for evaluation in together] == ["reach-v3", "push-v3"]
    for one, other in zip(together, separate, strict=True):
        assert summarize(one) == summarize(other)
        for episode, expected in zip(one.episodes, other.episodes, strict=True):
            assert episode.distance_to_nearest_demo == expected.distance_to_nearest_demo
        assert one.baselines["expert"] == Rate(1, 1)
    for name in AGENTS:
        for a, b in zip(all_rollouts[name], separate_rollouts[name], strict=True):
            assert np.array_equal(a.executed_action, b.executed_action)
    init_state_sets[1].save(tmp_path / "init_states.json")
    assert init_state_sets_from(str(tmp_path / "init_states.json"), two_tasks.metadata, config) == init_state_sets[1:]


def test_baselines_run_from_the_same_initial_states(
    evaluation: Evaluation, rollouts: dict[str, list[Episode]], reach_store: EpisodeStore
) -> None:
    same_init_states = list(evaluation.init_state_set.init_states[:2])
    for name in ("expert", "zero actions", "random"):
        assert [outcome.init_state for outcome in rollouts[name]] == same_init_states
    assert all(outcome.success_once for outcome in rollouts["expert"])
    from_demonstrated = {outcome.init_state for outcome in rollouts["demonstrated initial states"]}
    assert from_demonstrated <= set(reach_store.init_states)


def test_distance_to_demonstrations_and_largest_z_are_reported(
    evaluation: Evaluation, reach_store: EpisodeStore
) -> None:
    for episode in evaluation.episodes:
        assert episode.distance_to_nearest_demo is not None
        assert 0 < episode.distance_to_nearest_demo < 5**0.5
        assert episode.largest_z is not None
        assert 0 < episode.largest_z < 100


def test_result_files_agree_with_the_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    page = write_results(evaluation, tmp_path)
    rows = list(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert tuple(map(float, rows[1]["init_state"].split())) == evaluation.init_state_set.init_states[1].rand_vec
    for row, result in zip(rows, evaluation.outcomes, strict=True):
        assert row["success_once"] == str(int(result.success_once))
        assert float(row["final_distance"]) == pytest.approx(result.distances[-1], abs=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(summarize(evaluation)))
    assert sum(summary["failures"].values()) == 3 - summary["success_once"]["successes"]
    assert list(summary["stage_counts"])[-1] == "success"
    assert summary["stage_counts"]["success"] == summary["success_once"]["successes"]
    assert sum(each["success_once"]["num"] for each in summary["success_by_distance_to_nearest_demo"]) == 3
    assert summary["init_state_set"]["hash"] == InitialStateSet.load(tmp_path / "init_states.json").hash
    assert "success (at any step, the benchmark" in page.read_text()


def test_files_read_back_are_the_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    write_results(evaluation, tmp_path)
    (read,) = read_evaluations(tmp_path)
    assert read.init_state_set == evaluation.init_state_set
    assert read.baselines == evaluation.baselines
    assert read.success == evaluation.success
    assert read.failures == evaluation.failures
    assert read.provenance == json.loads(json.dumps(evaluation.provenance))
    for one, other in zip(read.episodes, evaluation.episodes, strict=True):
        assert one.distance_to_nearest_demo == other.distance_to_nearest_demo
        assert one.final_distance == pytest.approx(other.final_distance, abs=1e-6)
        for name in ("success_step", "furthest_stage", "failure_mode", "num_steps", "crash"):
            assert getattr(one, name) == getattr(other, name), name
    write_evaluation(read, tmp_path / "again")
    for name in ("init_states.json", "episodes.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_plain_function_is_evaluated_like_a_policy(tmp_path: Path) -> None:
    """It has no demonstrations, so the distances to them are unknown; the baselines are measured."""
    init_state_set = make_init_state_set("reach-v3", "test", 3, 0, [])

    def towards_goal(states: np.ndarray) -> np.ndarray:
        assert states.shape[1:] == (39,)
        return np.concatenate([10 * (states[:, -3:] - states[:, :3]), np.zeros((len(states), 1))], axis=1)

    with RolloutPool(1) as roll:
        evaluation = evaluate_all(towards_goal, [init_state_set], CONFIG, roll=roll)[0]
        chunks = evaluate_all(lambda states: np.zeros((len(states), 8, 4)), [init_state_set], CONFIG, roll=roll)[0]
    assert evaluation.success == Rate(3, 3)
    assert chunks.success == Rate(0, 3)
    assert chunks.failures == {"frozen": 3}
    assert evaluation.baselines["expert"] == Rate(2, 2)
    assert "demonstrated initial states" not in evaluation.baselines
    assert evaluation.success_by_distance == []
    assert (evaluation.largest_z, evaluation.far_text) == (None, "n/a")
    assert "success (at any step, the benchmark" in write_results(evaluation, tmp_path).read_text()
    (read,) = read_evaluations(tmp_path)
    assert read.success == evaluation.success


def test_interpretation_names_uncovered_initial_states(evaluation: Evaluation) -> None:
    init_states = InitialStateDistribution("reach-v3").sample(50, seed=0, stream="evaluate")
    failing = [
        EpisodeResult.of(outcome(False, init_state), distance_to_nearest_demo=0.5, largest_z=3.0)
        for init_state in init_states
    ]
    all_succeeded, all_failed = Rate(20, 20), Rate(0, 50)
    baselines = {"expert": all_succeeded, "demonstrated initial states": all_succeeded}
    uncovered = replace(evaluation, episodes=failing, baselines=baselines)
    assert "do not cover the initial states" in uncovered.interpretation
    assert uncovered.interpretation.endswith("Fix: act doctor RUN")
    training = {"checkpoint": "runs/reach/checkpoints/best", "config": {"policy": {}}}
    of_run = replace(uncovered, provenance={**evaluation.provenance, "training": training})
    assert of_run.interpretation.endswith("Fix: act doctor runs/reach")
    failing_everywhere = replace(uncovered, baselines={**baselines, "demonstrated initial states": all_failed})
    assert failing_everywhere.interpretation == ""
    outside = replace(uncovered, init_state_set=replace(evaluation.init_state_set, kind="ood"))
    assert "it does not extrapolate" in outside.interpretation
    infeasible = replace(uncovered, baselines={**baselines, "expert": all_failed})
    assert "The scripted expert itself succeeds only 0/50" in infeasible.interpretation


def test_selection_reports_success_with_its_interval(tiny_policy: Policy) -> None:
    init_states = InitialStateDistribution("reach-v3").sample(2, seed=0, stream="select")
    with RolloutPool(1) as roll:
        result = make_checkpoint_evaluator(roll, init_states)(tiny_policy)
    assert result.num == 2
    assert result.low <= result.successes / 2 <= result.high
    assert result.by_task == {}


def test_selection_reports_success_per_task(two_tasks: Policy) -> None:
    """The outcomes are made up: the test covers their assignment to the tasks."""
    init_states: list[InitialState] = []
    for task in two_tasks.tasks:
        init_states += InitialStateDistribution(task).sample(2, seed=0, stream="select")

    def roll(agent: object, init_states: list[InitialState], **options: object) -> list[Episode]:
        return [
            outcome(init_state.task == "push-v3" or init_state is init_states[0], init_state)
            for init_state in init_states
        ]

    result = make_checkpoint_evaluator(roll, init_states)(two_tasks)  # type: ignore[arg-type]
    assert (result.successes, result.num) == (3, 4)
    assert result.by_task == {"reach-v3": 0.5, "push-v3": 1.0}


def test_videos_show_failures_first() -> None:
    init_states = InitialStateDistribution("reach-v3").sample(5, seed=0, stream="evaluate")
    outcomes = [outcome(i not in (1, 3), init_state) for i, init_state in enumerate(init_states)]
    assert select_episodes([outcomes], 3) == [[1, 3, 0]]
    good = [outcome(True, init_state) for init_state in init_states]
    bad = [outcome(False, init_state) for init_state in init_states]
    assert select_episodes([good, outcomes, bad], 3) == [[], [1, 3], [0]]
    assert select_episodes([outcomes, bad, bad], 4) == [[1, 3], [0], [0]]
    assert select_episodes([outcomes[:1], good], 9) == [[0], [0, 1, 2, 3, 4]]


def evaluation_of(task: str, successes: int, num: int, *, expert: bool = True) -> Evaluation:
    init_state_set = make_init_state_set(task, "test", num, 0, [])
    outcomes = [outcome(i < successes, init_state) for i, init_state in enumerate(init_state_set.init_states)]
    episodes = [EpisodeResult.of(o, distance_to_nearest_demo=0.1, largest_z=2.0) for o in outcomes]
    known = {"versions": {}, "training": {"data": []}, "dataset": {"fingerprint": "", "command": ""}}
    return Evaluation(
        init_state_set=init_state_set,
        episodes=episodes,
        baselines={"expert": Rate(1, 1)} if expert else {},
        demonstrated=np.empty((0, len(init_state_set.init_states[0].rand_vec))),
        provenance={**dict.fromkeys(PROVENANCE), **known},
        outcomes=outcomes,
    )


def test_states_unlike_any_demonstration_are_flagged_and_explained(tmp_path: Path) -> None:
    near = evaluation_of("reach-v3", 3, 4)
    assert near.far_text == "2.0 standard deviations"
    assert 'class="level WARN' not in write_results(near, tmp_path / "near").read_text()
    far = replace(near, episodes=[replace(near.episodes[0], largest_z=61.7), *near.episodes[1:]])
    assert "61.7 standard deviations; in 1 of 4 episodes more than 15: states unlike any" in far.far_text
    page = write_results(far, tmp_path / "far").read_text()
    assert re.search(rf'<td class="level WARN.*</span>{far.far_text}</td></tr>', page)


def test_overview_has_every_task_and_means_with_equal_weights(tmp_path: Path) -> None:
    evaluations = [
        evaluation_of("reach-v3", 10, 10),
        evaluation_of("push-v3", 5, 10),
        evaluation_of("lever-pull-v3", 0, 10),
    ]
    rows = {row[0].text: row[1:] for row in task_rows(evaluations)}
    assert rows["lever-pull-v3"] == ("easy", Rate(0, 10), Rate(0, 10), "0.100 rad", Rate(1, 1), "frozen 10")
    means = {row[1]: row for row in mean_rows(evaluations)}
    assert list(means) == ["easy", "hard", "all"]
    assert means["easy"][:3] == ("mean of 2 tasks", "easy", MacroAverageRate((Rate(10, 10), Rate(0, 10))))
    assert overview_title(evaluations) == "3 tasks, 30 test initial states: success 50.0 % [33, 67 %]"
    summary = summarize_all(evaluations)
    assert summary["tasks"]["push-v3"]["success_once"]["successes"] == 5
    assert summary["means"]["all"]["success_once"]["value"] == pytest.approx(0.5)
    page = write_overview(evaluations, tmp_path).read_text()
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert 'href="push-v3/report.html"' in page
    uneven = [evaluation_of("reach-v3", 10, 10), evaluation_of("push-v3", 0, 20, expert=False)]
    assert overview_title(uneven).endswith("success 50.0 %"), (
        "with unequal numbers of episodes, the mean has no interval"
    )
    assert summarize_all(uneven)["means"]["all"]["expert"] is None


def test_interval_of_a_mean_over_tasks_is_conservative() -> None:
    assert MacroAverageRate((Rate(3, 10), Rate(9, 10))).interval == Rate(12, 20).interval
    rng, chances = np.random.default_rng(0), np.linspace(0.1, 1, 10)
    covered = 0
    for _ in range(500):
        interval = MacroAverageRate(tuple(Rate(int(k), 20) for k in rng.binomial(20, chances))).interval
        assert interval is not None
        covered += interval[0] <= chances.mean() <= interval[1]
    assert covered / 500 > 0.96, "with one rate for all tasks, the coverage would be 0.95"
