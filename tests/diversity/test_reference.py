"""The statistics that verdicts rest on, and what they are in healthy datasets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import energy_distance, ks_2samp

from act_kit.diversity import reference
from act_kit.diversity.reference import (
    ReferenceSet,
    ReferenceStatistics,
    accepted,
    correlations,
    count_distinct,
    draw,
    effective_rank,
    reference_init_states,
    reference_statistics_against,
    scale,
    simulate,
)
from act_kit.sim.tasks import TASKS, get_task


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_starts_are_drawn_by_the_tasks_own_law(task) -> None:  # type: ignore[no-untyped-def]
    drawn = draw(task, 300, seed=1)
    assert drawn.shape == (300, len(task.low))
    for init_state in drawn:
        task.check(init_state)
    assert (drawn >= task.low).all()
    assert (drawn <= task.high).all()
    everywhere = np.random.default_rng(0).uniform(task.low, task.high, (200, len(task.low)))
    assert accepted(task, everywhere).tolist() == [not task.rejects(init_state) for init_state in everywhere]


def measured(y: np.ndarray, x: np.ndarray) -> dict[tuple[str, int], float]:
    yardstick = ReferenceSet(y)
    towards = np.linalg.norm(x[:, None] - y, axis=-1).mean(axis=1)
    values = yardstick.measure(x[None], yardstick.share_below(x)[None], towards[None])
    return dict(zip(yardstick.gates, values[0], strict=True))


def test_statistics_are_scipys() -> None:
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


def test_distinct_starts_are_counted_to_a_micrometre() -> None:
    init_states = draw(get_task("push-v3"), 200, seed=0)
    near = init_states[:50] + np.random.default_rng(0).uniform(-4e-7, 4e-7, (50, 6))
    assert count_distinct(np.concatenate([init_states, near, init_states[:20]])) == 200
    assert count_distinct(init_states[:1]) == 1


@pytest.mark.parametrize("name", ["box-close-v3", "drawer-open-v3"])
def test_chances_are_those_of_healthy_datasets(name: str) -> None:
    task = get_task(name)
    y = scale(task, reference_init_states(task))
    yardstick, healthy = ReferenceSet(y), simulate(task, 20, y)
    p_values, familywise = [], []
    for seed in range(300):
        x = scale(task, draw(task, 20, seed))
        distances = np.linalg.norm(x[:, None] - y, axis=-1)
        values = yardstick.measure(x[None], yardstick.share_below(x)[None], distances.mean(axis=1)[None])[0]
        values = np.append(values, (distances.min(axis=0) > healthy.nearest_p99).mean())
        p_values.append(healthy.coverage.p_values(values)[: len(yardstick.gates)])
        familywise.append(healthy.coverage.familywise(values).min())
    informative = [
        i for i, (gate, _) in enumerate(yardstick.gates) if len(task.informative) > 1 or gate in ("range", "ks")
    ]
    assert np.mean(p_values, axis=0)[informative] == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.array(familywise) <= 0.1) <= 0.16


def test_what_was_simulated_is_kept_and_damage_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path / "cache"))
    task = get_task("drawer-open-v3")
    y = scale(task, reference_init_states(task))
    made = reference_statistics_against(task, 12, y)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    fixed = reference_statistics_against(task, 12, y)
    monkeypatch.setattr(reference, "simulate", lambda *_: pytest.fail("it was simulated again"))
    for other in (fixed, reference_statistics_against(task, 12, y)):
        assert all(np.array_equal(getattr(made, name), getattr(other, name)) for name in vars(made) if name[0] != "_")


@pytest.mark.parametrize("kind", ["another shape", "another type", "pipe", "folder"])
def test_a_cache_of_something_else_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path))
    reference.cached("x", 1, ["a"], lambda: {"a": np.arange(6.0)})
    (file,) = tmp_path.iterdir()
    with np.load(file) as kept:
        digest = str(kept["digest"])
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        other = np.arange(6.0).reshape(2, 3) if kind == "another shape" else np.arange(6)
        np.savez(file, a=other, digest=digest)
    again = reference.cached("x", 1, ["a"], lambda: {"a": np.arange(6.0)})["a"]
    assert (again.dtype, again.shape) == (np.float64, (6,))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACT_KIT_CACHE", str(tmp_path / "file"))
    task = get_task("drawer-open-v3")
    assert isinstance(
        reference_statistics_against(task, 12, scale(task, reference_init_states(task))), ReferenceStatistics
    )
