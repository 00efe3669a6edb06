"""Diversity statistics and their reference distributions in healthy datasets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import energy_distance, ks_2samp

from act_kit.arrays import evenly_spaced
from act_kit.diversity import reference
from act_kit.diversity.reference import (
    ReferenceSet,
    ReferenceStatistics,
    accepted,
    correlations,
    count_distinct,
    distance_to_nearest,
    draw,
    effective_rank,
    reference_init_states,
    reference_statistics_against,
    simulate,
)
from act_kit.sim.initial_states import scale
from act_kit.sim.tasks import TASKS, Task, get_task


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_initial_states_are_drawn_from_the_tasks_distribution(task: Task) -> None:
    drawn = draw(task, 300, seed=1)
    assert drawn.shape == (300, len(task.low))
    for init_state in drawn:
        task.check(init_state)
    assert (drawn >= task.low).all()
    assert (drawn <= task.high).all()
    everywhere = np.random.default_rng(0).uniform(task.low, task.high, (200, len(task.low)))
    assert accepted(task, everywhere).tolist() == [not task.is_resampled(init_state) for init_state in everywhere]


def measured(y: np.ndarray, x: np.ndarray) -> dict[tuple[str, int], float]:
    reference_set = ReferenceSet(y)
    mean_distance = np.linalg.norm(x[:, None] - y, axis=-1).mean(axis=1)
    values = reference_set.measure(x[None], reference_set.share_below(x)[None], mean_distance[None])
    return dict(zip(reference_set.statistics, values[0], strict=True))


def test_statistics_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, 1, (40, 1)), rng.normal(0, 1, (70, 1))
    found = measured(y, x)
    assert found["energy", -1] == pytest.approx(energy_distance(x[:, 0], y[:, 0]) ** 2, abs=1e-12)
    assert found["ks", 0] == pytest.approx(ks_2samp(x[:, 0], y[:, 0]).statistic, abs=1e-12)
    repeated = np.repeat(x[:5], 8, axis=0)
    assert measured(y, repeated)["ks", 0] == pytest.approx(ks_2samp(repeated[:, 0], y[:, 0]).statistic, abs=1e-12)


def test_effective_rank_counts_dimensions() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 4))
    assert effective_rank(correlations(x)) == pytest.approx(4, abs=0.01)
    x[:, 3] = x[:, 0]
    assert effective_rank(correlations(x)) == pytest.approx(2 * 2**0.5, abs=0.01)
    x[:, 3] = 1.0
    assert effective_rank(correlations(x)) == pytest.approx(3, abs=0.01)


def test_distinct_initial_states_are_counted_to_a_micrometer() -> None:
    init_states = draw(get_task("push-v3"), 200, seed=0)
    near = init_states[:50] + np.random.default_rng(0).uniform(-4e-7, 4e-7, (50, 6))
    assert count_distinct(np.concatenate([init_states, near, init_states[:20]])) == 200
    assert count_distinct(init_states[:1]) == 1


@pytest.mark.parametrize("name", ["box-close-v3", "drawer-open-v3"])
def test_p_values_are_calibrated_on_healthy_datasets(name: str) -> None:
    task = get_task(name)
    y = scale(task, reference_init_states(task))
    reference_set, healthy = ReferenceSet(y), simulate(task, 20, y)
    p_values, familywise = [], []
    for seed in range(300):
        x = scale(task, draw(task, 20, seed))
        distances = np.linalg.norm(x[:, None] - y, axis=-1)
        values = reference_set.measure(x[None], reference_set.share_below(x)[None], distances.mean(axis=1)[None])[0]
        values = np.append(values, (distances.min(axis=0) > healthy.nearest_p99).mean())
        p_values.append(healthy.coverage.p_values(values)[: len(reference_set.statistics)])
        familywise.append(healthy.coverage.familywise(values).min())
    informative = [
        i
        for i, (name, _) in enumerate(reference_set.statistics)
        if len(task.informative) > 1 or name in ("range", "ks")
    ]
    assert np.mean(p_values, axis=0)[informative] == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.array(familywise) <= 0.1) <= 0.16


def test_simulations_are_cached_and_damaged_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path / "cache"))
    task = get_task("drawer-open-v3")
    y = scale(task, reference_init_states(task))
    computed = reference_statistics_against(task, 12, y)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    fixed = reference_statistics_against(task, 12, y)
    monkeypatch.setattr(reference, "simulate", lambda *_: pytest.fail("simulated again"))
    for other in (fixed, reference_statistics_against(task, 12, y)):
        assert all(
            np.array_equal(getattr(computed, name), getattr(other, name)) for name in vars(computed) if name[0] != "_"
        )


@pytest.mark.parametrize("kind", ["another shape", "another type", "pipe", "folder"])
def test_foreign_cache_files_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path))
    reference.cached("x", 1, lambda: {"a": np.arange(6.0)})
    (file,) = tmp_path.iterdir()
    with np.load(file) as stored:
        digest = str(stored["digest"])
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        other = np.arange(6.0).reshape(2, 3) if kind == "another shape" else np.arange(6)
        np.savez(file, a=other, digest=digest)
    again = reference.cached("x", 1, lambda: {"a": np.arange(6.0)})["a"]
    assert again.dtype == np.float64
    assert again.shape == (6,)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path / "file"))
    task = get_task("drawer-open-v3")
    assert isinstance(
        reference_statistics_against(task, 12, scale(task, reference_init_states(task))), ReferenceStatistics
    )


def test_the_nearest_of_some_rows_is_found_in_both_norms() -> None:
    rng = np.random.default_rng(0)
    rows, others = rng.uniform(size=(40, 5)), rng.uniform(size=(30, 5))
    differences = np.abs(rows[:, None] - others)
    np.testing.assert_allclose(distance_to_nearest(rows, others), np.sqrt((differences**2).sum(axis=-1)).min(axis=0))
    np.testing.assert_array_equal(distance_to_nearest(rows, others, np.inf), differences.max(axis=-1).min(axis=0))


@pytest.mark.parametrize(("total", "num", "expected"), [(8, 4, [0, 2, 5, 7]), (3, 5, [0, 1, 2]), (1, 3, [0])])
def test_evenly_spaced_indices_have_both_ends_and_no_repetition(total: int, num: int, expected: list[int]) -> None:
    assert evenly_spaced(total, num).tolist() == expected
