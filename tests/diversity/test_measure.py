"""The diversity verdict: what must fail, what must warn, what must pass."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.config import TrainConfig
from act_kit.datasets.split import SPLIT_SEED, VAL_FRACTION
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import DiversityReport, holm, measure, measure_init_states
from act_kit.diversity.reference import scale
from act_kit.errors import DatasetError
from act_kit.overrides import compose
from act_kit.sim.initial_states import InitialStateDistribution, stack
from act_kit.sim.tasks import TASKS, get_task


def draw(task: str, num: int, seed: int = 0) -> np.ndarray:
    return stack(InitialStateDistribution(task).sample(num, seed=seed, stream="collect"))


def judge(task: str, rand_vecs: np.ndarray) -> DiversityReport:
    return measure_init_states(get_task(task), rand_vecs)


@pytest.mark.parametrize("task", TASKS)
def test_randomised_starts_do_not_fail_and_copies_do(task: str) -> None:
    init_states = draw(task, 50)
    assert judge(task, init_states).level != "FAIL"
    copies = judge(task, np.repeat(init_states[:1], 50, axis=0))
    assert copies.level == "FAIL"
    assert "all 50 demonstrations begin from one and the same start" in copies.verdict
    assert f"act collect --task {task} --randomize --n 50" in copies.verdict


def test_copies_with_rounding_noise_fail_too() -> None:
    copies = np.repeat(draw("push-v3", 1), 50, axis=0) + np.random.default_rng(0).normal(0, 1e-12, (50, 6))
    assert judge("push-v3", copies).level == "FAIL"


@pytest.mark.parametrize("num_distinct", [2, 4])
def test_a_few_starts_repeated_fail(num_distinct: int) -> None:
    diversity = judge("push-v3", np.resize(draw("push-v3", num_distinct), (60, 6)))
    assert diversity.level == "FAIL"
    assert f"only {num_distinct} distinct starts" in diversity.verdict


@pytest.mark.parametrize("seed", range(5))
def test_a_frozen_dimension_fails_and_is_named(seed: int) -> None:
    init_states = draw("pick-place-v3", 50, seed)
    init_states[:, 5] = 0.2
    diversity = judge("pick-place-v3", init_states)
    assert diversity.level == "FAIL"
    assert "goal z hardly varies" in diversity.verdict


@pytest.mark.parametrize("seed", range(5))
def test_half_the_box_is_noticed(seed: int) -> None:
    init_states = draw("pick-place-v3", 400, seed)
    half = init_states[init_states[:, 0] < 0][:60]
    diversity = judge("pick-place-v3", half)
    assert diversity.level != "OK"
    assert any("object x covers only" in finding.text for finding in diversity.findings)


@pytest.mark.parametrize("seed", range(5))
def test_dimensions_that_vary_together_are_noticed(seed: int) -> None:
    init_states = draw("pick-place-v3", 100, seed)
    init_states[:, 3] = init_states[:, 0]
    init_states[:, 4] = init_states[:, 1] + 0.2
    diversity = judge("pick-place-v3", init_states)
    assert any("vary together" in finding.text for finding in diversity.findings)


def test_a_corner_of_a_two_dimensional_task_fails() -> None:
    task = get_task("button-press-v3")
    corner = np.asarray(task.low) + 0.15 * (draw("button-press-v3", 50) - np.asarray(task.low))
    assert judge("button-press-v3", corner).level == "FAIL"


def test_few_demonstrations_are_never_ok() -> None:
    diversity = judge("push-v3", draw("push-v3", 9))
    assert diversity.level == "WARN"
    assert "too few to judge" in diversity.verdict


def test_false_alarms_are_rare() -> None:
    verdicts = [judge("pick-place-v3", draw("pick-place-v3", 50, seed)).level for seed in range(60)]
    assert verdicts.count("FAIL") == 0
    assert verdicts.count("WARN") <= 4


def test_holm_is_holms() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_few_demonstrations_of_one_start_fail_and_one_alone_warns() -> None:
    assert judge("push-v3", np.repeat(draw("push-v3", 1), 5, axis=0)).level == "FAIL"
    assert judge("push-v3", draw("push-v3", 1)).level == "WARN"


@pytest.mark.parametrize("num", [20, 200])
def test_five_starts_of_many_are_noticed(num: int) -> None:
    diversity = judge("button-press-v3", np.resize(draw("button-press-v3", 5), (num, 3)))
    assert diversity.level == ("FAIL" if num == 200 else "WARN")
    assert diversity.num_distinct == 5


def test_a_pair_that_varies_together_is_named() -> None:
    init_states = draw("reach-wall-v3", 60)
    init_states[:, 5] = 0.05 + (init_states[:, 0] + 0.05) * 2.5
    (text,) = [finding.text for finding in judge("reach-wall-v3", init_states).findings if "together" in finding.text]
    assert "object x and goal z vary together" in text


def test_starts_that_the_task_never_has_cover_nothing() -> None:
    init_states = draw("push-v3", 50)
    init_states[:10, 0] += 1.0
    diversity = judge("push-v3", init_states)
    assert diversity.num_outside == 10
    assert "20 % of the starts lie where push-v3 never begins" in diversity.verdict
    elsewhere = judge("push-v3", init_states + 1.0)
    assert elsewhere.level == "FAIL"
    assert "are they of another task?" in elsewhere.verdict
    too_near = draw("push-v3", 50)
    too_near[:5, 3:5] = too_near[:5, :2]
    assert judge("push-v3", too_near).num_outside == 5


def test_starts_that_are_not_finite_are_outside() -> None:
    init_states = draw("push-v3", 50)
    init_states[3, 1] = np.nan
    assert judge("push-v3", init_states).num_outside == 1
    with pytest.raises(DatasetError, match="finite"):
        judge("push-v3", np.full((50, 6), np.nan))


def test_against_an_evaluation_set() -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 50)
    evaluated = draw("push-v3", 100, seed=9)
    assert measure_init_states(task, init_states, against=evaluated).level == "OK"
    other_side = evaluated[evaluated[:, 0] > 0]
    elsewhere = measure_init_states(task, init_states[init_states[:, 0] < 0], against=other_side)
    assert elsewhere.level == "WARN"
    shared = measure_init_states(task, np.concatenate([init_states[:-3], evaluated[:3]]), against=evaluated)
    assert shared.num_shared == 3
    assert "3 of the demonstrated starts are in the evaluation set" in shared.verdict


def test_an_evaluation_set_that_hardly_varies_is_not_judged_by_distributions() -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 50)
    line = draw("push-v3", 60, seed=9)
    line[:, 0] = 0.0
    assert [note[:32] for note in measure_init_states(task, init_states, against=line).notes] == [
        "The distribution of object x was", "Of the box, 50 demonstrations wo",
    ]  # fmt: skip
    few = measure_init_states(task, init_states, against=line[:5])
    assert "only distances" in few.notes[0]
    assert few.visible_holes == []
    assert few.level == "OK"


def test_many_demonstrations_are_judged_by_some() -> None:
    init_states = draw("drawer-open-v3", 3000)
    diversity = judge("drawer-open-v3", init_states)
    assert diversity.level == "OK"
    assert 2900 < diversity.num_distinct < 3000, "to a micrometre, some agree by chance"
    assert "500 of the 3000" in diversity.notes[0]
    assert judge("drawer-open-v3", np.resize(init_states[:100], (3000, 3))).level == "FAIL"


def test_more_demonstrations_bring_starts_nearer(reach_store: EpisodeStore) -> None:
    diversity = measure(reach_store)
    assert [point.num for point in diversity.scaling] == [2, 5, 10, 20, 40]
    nearest = [point.nearest for point in diversity.scaling]
    assert nearest == sorted(nearest, reverse=True)
    assert "with 10 more random starts, " in diversity.more


def test_every_seed_of_the_validation_split_is_the_trainings() -> None:
    trainer = compose("train", TrainConfig).trainer
    assert (trainer.val_fraction, trainer.seed) == (VAL_FRACTION, SPLIT_SEED)


@pytest.mark.parametrize("task", ["push-v3", "basketball-v3", "button-press-v3"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_hole_in_the_middle_is_noticed(task: str, share: float) -> None:
    """With half of the box missing there, only its outer half was demonstrated."""
    init_states = draw(task, 2000)
    outwards = np.abs(2 * scale(get_task(task), init_states) - 1).max(axis=1)
    outer = init_states[np.argsort(outwards)[round(share * len(init_states)) :]]
    for seed in range(3):
        diversity = judge(task, np.random.default_rng(seed).choice(outer, 50, replace=False))
        assert diversity.level == "WARN"
        assert "demonstrations begin in the middle" in diversity.verdict


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ([1], "a hole: no demonstration has object y between"),
        ([0, 3], "a hole: 1 of 60 demonstrations have object x between -0.050 and 0.050 m and goal x between"),
    ],
)
def test_a_hole_in_some_dimensions_is_noticed_and_placed(dims: list[int], said: str) -> None:
    task, init_states = get_task("push-v3"), draw("push-v3", 1000)
    apart = np.abs((init_states - np.add(task.low, task.high) / 2) / np.maximum(task.width, 1e-9))[:, dims]
    half = 0.15 if len(dims) == 1 else 0.3
    diversity = measure_init_states(task, init_states[(apart > half).any(axis=1)][:60])
    assert diversity.level == "WARN"
    assert said in diversity.verdict
    assert all(task.dim_name(dim) in diversity.verdict for dim in dims)


def test_clusters_are_noticed() -> None:
    rng, task = np.random.default_rng(0), get_task("push-v3")
    near = draw("push-v3", 4)[rng.integers(4, size=60)] + rng.normal(0, 0.004, (60, 6))
    assert measure_init_states(task, np.clip(near, task.low, task.high)).level != "OK"


def test_the_report_says_which_holes_it_could_have_seen() -> None:
    few, many = judge("push-v3", draw("push-v3", 20)), judge("push-v3", draw("push-v3", 50))
    kinds = [hole.where for hole in many.visible_holes]
    assert kinds == [
        "in the middle of the box", "anywhere in the box", "anywhere in two dimensions", "anywhere in one dimension",
    ]  # fmt: skip
    for hole, at_few in zip(many.visible_holes, few.visible_holes, strict=True):
        assert hole.share is not None
        assert at_few.share is None or hole.share < at_few.share
    assert f"{100 * (many.visible_holes[0].share or 0):.0f} % of it in the middle of the box" in many.notes[-1]
    assert judge("push-v3", draw("push-v3", 9)).visible_holes == []


@pytest.mark.parametrize("task", ["push-v3", "button-press-v3", "drawer-open-v3"])
def test_holes_that_would_be_seen_are(task: str) -> None:
    """Of those of the stated size, in the middle, at least 70 % of other draws are warned about (80 % are promised)."""
    hole = judge(task, draw(task, 50)).visible_holes[0]
    assert hole.share is not None
    init_states = draw(task, 4000, seed=3)
    outwards = np.abs(2 * scale(get_task(task), init_states) - 1).max(axis=1)
    outer = init_states[np.argsort(outwards)[round(hole.share * len(init_states)) :]]
    rng = np.random.default_rng(1)
    levels = [judge(task, rng.choice(outer, 50, replace=False)).level for _ in range(40)]
    assert levels.count("WARN") >= 28


def test_near_copies_of_few_starts_fail() -> None:
    init_states = np.resize(draw("push-v3", 4), (60, 6)) + np.random.default_rng(0).normal(0, 1e-5, (60, 6))
    diversity = judge("push-v3", np.clip(init_states, get_task("push-v3").low, get_task("push-v3").high))
    assert diversity.level == "FAIL"
    assert "only 4 distinct starts" in diversity.verdict
