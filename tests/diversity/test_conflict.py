"""Demonstrations that go two ways: found where two experts pass the wall on two sides, and not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_kit.collection.collect import collect
from act_kit.config.collection import CollectConfig
from act_kit.datasets.ops import merge, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.conflict import MIN_DEMONSTRATIONS, find_conflict
from act_kit.diversity.measure import measure_diversity
from act_kit.errors import TaskError
from act_kit.rollouts.episode import Episode
from act_kit.sim.other_way import TASKS, OtherWayExpert
from act_kit.sim.tasks import TASKS as ALL_TASKS
from tests.conftest import SERIAL

WAYS = ("scripted", "other-way")

WALL = 0.75
"""Position of the wall in y, in meters."""


def demonstrate(out: Path, task: str, demonstrator: str, n: int, seed: int = 0) -> EpisodeStore:
    config = CollectConfig(task=task, n=n, seed=seed, demonstrator=demonstrator, steps_after_success=10)
    return collect(config, out / f"{task}-{demonstrator}-{n}-{seed}", executor=SERIAL)


def crossings(episodes: Sequence[Episode]) -> list[float]:
    """Return where in x the object passes the wall."""
    return [float(each.state[np.argmax(each.state[:, 5] > WALL), 4]) for each in episodes]


@pytest.mark.parametrize("task", TASKS)
def test_the_other_expert_succeeds_on_the_other_way(task: str, tmp_path: Path) -> None:
    store = demonstrate(tmp_path, task, "other-way", 6)
    assert len(store.failed_rand_vecs) == 0
    assert set(store.sources) == {"other-way"}
    assert min(crossings(store.episodes())) > 0.22, "right of the wall's end"
    assert max(crossings(demonstrate(tmp_path, task, "scripted", 3).episodes())) < 0.1


def test_tasks_without_a_second_way_are_refused() -> None:
    with pytest.raises(TaskError, match=r"reach-v3 has no second scripted expert: expected one of push-wall-v3"):
        OtherWayExpert("reach-v3")


def test_two_ways_are_found_and_named(tmp_path: Path) -> None:
    one = demonstrate(tmp_path, "push-wall-v3", "scripted", 12).episodes()
    other = demonstrate(tmp_path, "push-wall-v3", "other-way", 12, seed=1).episodes()
    assert find_conflict(one) is None
    assert find_conflict(other) is None
    found = find_conflict([*one, *other])
    assert found is not None
    assert set(found.sources or ()) == {"scripted", "other-way"}
    assert found.sizes == (12, 12)
    assert 0.2 < found.distance_m < 0.5
    assert found.parted_at[1] < WALL
    unnamed = find_conflict([replace(each, source="teleop") for each in [*one, *other]])
    assert unnamed is not None
    assert unnamed.sources is None
    assert find_conflict([*one[:5], *other[: MIN_DEMONSTRATIONS - 6]]) is None, "too few"


def test_ways_that_the_initial_state_tells_apart_do_not_conflict(tmp_path: Path) -> None:
    one = demonstrate(tmp_path, "push-wall-v3", "scripted", 24).episodes()
    other = demonstrate(tmp_path, "push-wall-v3", "other-way", 24).episodes()
    chosen = []
    for a, b in zip(one, other, strict=True):
        assert a.init_state == b.init_state
        chosen.append(a if a.init_state.array[0] < 0 else b)
    assert find_conflict(chosen) is None


def test_the_report_says_it(tmp_path: Path) -> None:
    parts = [demonstrate(tmp_path, "push-wall-v3", name, 12, seed) for seed, name in enumerate(WAYS)]
    (merged,) = write_derived(tmp_path / "both", merge(parts), "act data merge", overwrite=False)
    measured = measure_diversity(merged)
    assert measured.conflict is not None
    assert "go two ways" in measured.verdict
    assert "policy=flow_small" in measured.verdict


@pytest.mark.e2e
@pytest.mark.parametrize("task", ALL_TASKS)
def test_one_expert_does_not_conflict_with_itself(task: str, tmp_path: Path) -> None:
    assert find_conflict(demonstrate(tmp_path, task, "scripted", 25).episodes()) is None
