"""The diversity verdict: datasets that must fail, warn or pass."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.config.training import TrainConfig
from act_kit.datasets.split import SPLIT_SEED, VAL_FRACTION
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import measure_diversity, measure_init_states
from act_kit.diversity.result import DiversityReport
from act_kit.errors import DatasetError
from act_kit.overrides import compose
from act_kit.sim.initial_states import InitialStateDistribution, scale, stack
from act_kit.sim.tasks import TASKS, get_task
from act_kit.statistics import holm


def draw(task: str, num: int, seed: int = 0) -> np.ndarray:
    return stack(InitialStateDistribution(task).sample(num, seed=seed, stream="collect"))


def report_of(task: str, rand_vecs: np.ndarray) -> DiversityReport:
    return measure_init_states(get_task(task), rand_vecs)


@pytest.mark.parametrize("task", TASKS)
def test_random_initial_states_do_not_fail_and_copies_do(task: str) -> None:
    init_states = draw(task, 50)
    assert report_of(task, init_states).level != "FAIL"
    copies = report_of(task, np.repeat(init_states[:1], 50, axis=0))
    assert copies.level == "FAIL"
    assert "all 50 demonstrations begin from the same initial state" in copies.verdict
    assert f"act collect --task {task} --randomize --n 50" in copies.verdict


def test_copies_with_rounding_noise_fail_too() -> None:
    copies = np.repeat(draw("push-v3", 1), 50, axis=0) + np.random.default_rng(0).normal(0, 1e-12, (50, 6))
    assert report_of("push-v3", copies).level == "FAIL"


@pytest.mark.parametrize("num_distinct", [2, 4])
def test_a_few_repeated_initial_states_fail(num_distinct: int) -> None:
    diversity = report_of("push-v3", np.resize(draw("push-v3", num_distinct), (60, 6)))
    assert diversity.level == "FAIL"
    assert f"only {num_distinct} distinct initial states" in diversity.verdict


@pytest.mark.parametrize("seed", range(5))
def test_a_frozen_dimension_fails_and_is_named(seed: int) -> None:
    init_states = draw("pick-place-v3", 50, seed)
    init_states[:, 5] = 0.2
    diversity = report_of("pick-place-v3", init_states)
    assert diversity.level == "FAIL"
    assert "goal z hardly varies" in diversity.verdict


@pytest.mark.parametrize("seed", range(5))
def test_half_the_box_is_reported(seed: int) -> None:
    init_states = draw("pick-place-v3", 400, seed)
    half = init_states[init_states[:, 0] < 0][:60]
    diversity = report_of("pick-place-v3", half)
    assert diversity.level != "OK"
    assert any("object x covers only" in finding.text for finding in diversity.findings)


@pytest.mark.parametrize("seed", range(5))
def test_dimensions_that_vary_together_are_reported(seed: int) -> None:
    init_states = draw("pick-place-v3", 100, seed)
    init_states[:, 3] = init_states[:, 0]
    init_states[:, 4] = init_states[:, 1] + 0.2
    diversity = report_of("pick-place-v3", init_states)
    assert any("vary together" in finding.text for finding in diversity.findings)


def test_a_corner_of_a_two_dimensional_task_fails() -> None:
    task = get_task("button-press-v3")
    corner = np.asarray(task.low) + 0.15 * (draw("button-press-v3", 50) - np.asarray(task.low))
    assert report_of("button-press-v3", corner).level == "FAIL"


def test_few_demonstrations_are_never_ok() -> None:
    diversity = report_of("push-v3", draw("push-v3", 9))
    assert diversity.level == "WARN"
    assert "too few to assess" in diversity.verdict


def test_false_alarms_are_rare() -> None:
    verdicts = [report_of("pick-place-v3", draw("pick-place-v3", 50, seed)).level for seed in range(60)]
    assert verdicts.count("FAIL") == 0
    assert verdicts.count("WARN") <= 4


def test_holm_adjusts_p_values() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_few_demonstrations_of_one_initial_state_fail_and_a_single_one_warns() -> None:
    assert report_of("push-v3", np.repeat(draw("push-v3", 1), 5, axis=0)).level == "FAIL"
    assert report_of("push-v3", draw("push-v3", 1)).level == "WARN"


@pytest.mark.parametrize("num", [20, 200])
def test_five_initial_states_of_many_demonstrations_are_reported(num: int) -> None:
    diversity = report_of("button-press-v3", np.resize(draw("button-press-v3", 5), (num, 3)))
    assert diversity.level == ("FAIL" if num == 200 else "WARN")
    assert diversity.num_distinct == 5


def test_a_pair_that_varies_together_is_named() -> None:
    init_states = draw("reach-wall-v3", 60)
    init_states[:, 5] = 0.05 + (init_states[:, 0] + 0.05) * 2.5
    (text,) = [
        finding.text for finding in report_of("reach-wall-v3", init_states).findings if "together" in finding.text
    ]
    assert "object x and goal z vary together" in text


def test_initial_states_out_of_distribution_cover_nothing() -> None:
    init_states = draw("push-v3", 50)
    init_states[:10, 0] += 1.0
    diversity = report_of("push-v3", init_states)
    assert diversity.num_outside == 10
    assert "20 % of the initial states lie outside the distribution of push-v3" in diversity.verdict
    elsewhere = report_of("push-v3", init_states + 1.0)
    assert elsewhere.level == "FAIL"
    assert "are they of another task?" in elsewhere.verdict
    too_near = draw("push-v3", 50)
    too_near[:5, 3:5] = too_near[:5, :2]
    assert report_of("push-v3", too_near).num_outside == 5


def test_initial_states_that_are_not_finite_are_out_of_distribution() -> None:
    init_states = draw("push-v3", 50)
    init_states[3, 1] = np.nan
    assert report_of("push-v3", init_states).num_outside == 1
    with pytest.raises(DatasetError, match="finite"):
        report_of("push-v3", np.full((50, 6), np.nan))


def test_against_an_evaluation_set() -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 50)
    evaluated = draw("push-v3", 100, seed=9)
    assert measure_init_states(task, init_states, against=evaluated).level == "OK"
    other_side = evaluated[evaluated[:, 0] > 0]
    elsewhere = measure_init_states(task, init_states[init_states[:, 0] < 0], against=other_side)
    assert elsewhere.level == "WARN"
    shared = measure_init_states(task, np.concatenate([init_states[:-3], evaluated[:3]]), against=evaluated)
    assert shared.num_shared == 3
    assert "3 of the demonstrated initial states are in the evaluation set" in shared.verdict


def test_distributions_are_not_compared_if_the_evaluation_set_hardly_varies() -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 50)
    line = draw("push-v3", 60, seed=9)
    line[:, 0] = 0.0
    assert [note[:32] for note in measure_init_states(task, init_states, against=line).notes] == [
        "The distribution of object x was",
        "With 50 demonstrations, holes of",
    ]
    few = measure_init_states(task, init_states, against=line[:5])
    assert "only distances" in few.notes[0]
    assert few.visible_holes == []
    assert few.level == "OK"


def test_many_demonstrations_are_measured_by_a_sample() -> None:
    init_states = draw("drawer-open-v3", 3000)
    diversity = report_of("drawer-open-v3", init_states)
    assert diversity.level == "OK"
    assert 2900 < diversity.num_distinct < 3000, "some agree by chance to a micrometer"
    assert "500 of the 3000" in diversity.notes[0]
    assert report_of("drawer-open-v3", np.resize(init_states[:100], (3000, 3))).level == "FAIL"


def test_more_demonstrations_reduce_the_distance(reach_store: EpisodeStore) -> None:
    diversity = measure_diversity(reach_store)
    assert [point.num for point in diversity.scaling] == [2, 5, 10, 20, 40]
    nearest = [point.nearest for point in diversity.scaling]
    assert nearest == sorted(nearest, reverse=True)
    assert "with 10 more random initial states, by " in diversity.more


def test_the_validation_split_is_that_of_training() -> None:
    trainer = compose(TrainConfig).trainer
    assert (trainer.val_fraction, trainer.seed) == (VAL_FRACTION, SPLIT_SEED)


@pytest.mark.parametrize("task", ["push-v3", "basketball-v3", "button-press-v3"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_hole_in_the_middle_is_reported(task: str, share: float) -> None:
    """A share of the initial states around the center is missing."""
    init_states = draw(task, 2000)
    depth = np.abs(2 * scale(get_task(task), init_states) - 1).max(axis=1)
    outer = init_states[np.argsort(depth)[round(share * len(init_states)) :]]
    for seed in range(3):
        diversity = report_of(task, np.random.default_rng(seed).choice(outer, 50, replace=False))
        assert diversity.level == "WARN"
        assert "demonstrations begin in the middle" in diversity.verdict


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([1], "a hole: no demonstration has object y between"),
        ([0, 3], "a hole: 1 of 60 demonstrations have object x between -0.050 and 0.050 m and goal x between"),
    ],
)
def test_a_hole_in_some_dimensions_is_reported_and_located(dims: list[int], expected: str) -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 1000)
    distance = np.abs((init_states - np.add(task.low, task.high) / 2) / np.maximum(task.width, 1e-9))[:, dims]
    half = 0.15 if len(dims) == 1 else 0.3
    diversity = measure_init_states(task, init_states[(distance > half).any(axis=1)][:60])
    assert diversity.level == "WARN"
    assert expected in diversity.verdict
    assert all(task.dim_name(dim) in diversity.verdict for dim in dims)


def test_clusters_are_reported() -> None:
    rng, task = np.random.default_rng(0), get_task("push-v3")
    near = draw("push-v3", 4)[rng.integers(4, size=60)] + rng.normal(0, 0.004, (60, 6))
    assert measure_init_states(task, np.clip(near, task.low, task.high)).level != "OK"


def test_the_report_lists_the_smallest_detectable_holes() -> None:
    few, many = report_of("push-v3", draw("push-v3", 20)), report_of("push-v3", draw("push-v3", 50))
    kinds = [hole.where for hole in many.visible_holes]
    assert kinds == [
        "in the middle of the box",
        "anywhere in the box",
        "anywhere in two dimensions",
        "anywhere in one dimension",
    ]
    for hole, at_few in zip(many.visible_holes, few.visible_holes, strict=True):
        assert hole.share is not None
        assert at_few.share is None or hole.share < at_few.share
    assert f"{100 * (many.visible_holes[0].share or 0):.0f} % in the middle of the box" in many.notes[-1]
    assert report_of("push-v3", draw("push-v3", 9)).visible_holes == []


@pytest.mark.parametrize("task", ["push-v3", "button-press-v3", "drawer-open-v3"])
def test_holes_of_the_stated_size_are_reported(task: str) -> None:
    """A centered hole of the stated size causes a warning in at least 70 % of new draws (80 % are stated)."""
    hole = report_of(task, draw(task, 50)).visible_holes[0]
    assert hole.share is not None
    init_states = draw(task, 4000, seed=3)
    depth = np.abs(2 * scale(get_task(task), init_states) - 1).max(axis=1)
    outer = init_states[np.argsort(depth)[round(hole.share * len(init_states)) :]]
    rng = np.random.default_rng(1)
    levels = [report_of(task, rng.choice(outer, 50, replace=False)).level for _ in range(40)]
    assert levels.count("WARN") >= 28


def test_near_copies_of_few_initial_states_fail() -> None:
    init_states = np.resize(draw("push-v3", 4), (60, 6)) + np.random.default_rng(0).normal(0, 1e-5, (60, 6))
    diversity = report_of("push-v3", np.clip(init_states, get_task("push-v3").low, get_task("push-v3").high))
    assert diversity.level == "FAIL"
    assert "only 4 distinct initial states" in diversity.verdict
