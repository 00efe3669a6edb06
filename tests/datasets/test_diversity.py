"""The diversity verdict: what must fail, what must warn, what must pass."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import energy_distance

from act_kit.datasets.diversity import Diversity, effective_rank, energy_test, holm, measure, measure_starts
from act_kit.datasets.report import terminal_table, write_report
from act_kit.datasets.store import EpisodeStore
from act_kit.sim.starts import StartLaw, stack
from act_kit.sim.tasks import TASKS, get_task


def draw(task: str, num: int, seed: int = 0) -> np.ndarray:
    return stack(StartLaw(task).sample(num, seed=seed, stream="collect"))


def judge(task: str, rand_vecs: np.ndarray) -> Diversity:
    return measure_starts(get_task(task), rand_vecs)


@pytest.mark.parametrize("task", TASKS)
def test_randomised_starts_do_not_fail_and_copies_do(task: str) -> None:
    starts = draw(task, 50)
    assert judge(task, starts).level != "FAIL"
    copies = judge(task, np.repeat(starts[:1], 50, axis=0))
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
    starts = draw("pick-place-v3", 50, seed)
    starts[:, 5] = 0.2
    diversity = judge("pick-place-v3", starts)
    assert diversity.level == "FAIL"
    assert "goal z hardly varies" in diversity.verdict


@pytest.mark.parametrize("seed", range(5))
def test_half_the_box_is_noticed(seed: int) -> None:
    starts = draw("pick-place-v3", 400, seed)
    half = starts[starts[:, 0] < 0][:60]
    diversity = judge("pick-place-v3", half)
    assert diversity.level != "OK"
    assert any("object x covers only" in finding.text for finding in diversity.findings)


@pytest.mark.parametrize("seed", range(5))
def test_dimensions_that_vary_together_are_noticed(seed: int) -> None:
    starts = draw("pick-place-v3", 100, seed)
    starts[:, 3] = starts[:, 0]
    starts[:, 4] = starts[:, 1] + 0.2
    diversity = judge("pick-place-v3", starts)
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


def test_energy_distance_is_scipys_in_one_dimension() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 40), rng.normal(0.5, 1, 70)
    statistic, p_value = energy_test(x[:, None], y[:, None])
    assert statistic == pytest.approx(energy_distance(x, y) ** 2, abs=1e-12)
    assert p_value < 0.05
    p_values = [energy_test(rng.normal(size=(20, 2)), rng.normal(size=(60, 2)))[1] for _ in range(20)]
    assert 0.2 < np.mean(p_values) < 0.8


def test_holm_is_holms() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_effective_rank_counts_dimensions() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 4))
    assert effective_rank(x) == pytest.approx(4, abs=0.01)
    x[:, 3] = x[:, 0]
    assert effective_rank(x) == pytest.approx(2 * 2**0.5, abs=0.01)
    x[:, 3] = 1.0
    assert effective_rank(x) == pytest.approx(3, abs=0.01)


def test_report_of_a_real_dataset(one_start_store: EpisodeStore, tmp_path: pytest.TempPathFactory) -> None:
    from pathlib import Path

    diversity = measure(one_start_store)
    assert (diversity.num_distinct, diversity.duplicate_trajectories) == (1, 0.9)
    out = Path(str(tmp_path))
    page = write_report(one_start_store, diversity, out).read_text()
    assert "one and the same start" in page
    assert "data:image/svg+xml" in page
    assert (out / "diversity.json").exists()
    assert terminal_table(diversity).row_count > 8
