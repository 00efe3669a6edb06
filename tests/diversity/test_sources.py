"""Shares of several sources in one dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.diversity.measure import measure_diversity
from act_kit.reports.dataset import dataset_report
from act_kit.rollouts.episode import AttemptRecord


@pytest.fixture
def two_sources(reach_store: EpisodeStore, tmp_path: Path) -> EpisodeStore:
    """Return 11 demonstrations: anna's on the left, the others by a failing policy, one from anna's initial state."""
    recordings = []
    left = next(r for r in reach_store.iter_episodes() if r.init_state and r.init_state.rand_vec[0] < 0)
    for i, recording in enumerate(reach_store.iter_episodes()):
        assert recording.init_state
        if recording.init_state.rand_vec[0] < 0:
            recordings.append(replace(recording, source="anna"))
        else:
            steps: dict[str, Any] = {**recording.steps, "success": recording.steps["success"] & (i % 2 == 0)}
            recordings.append(replace(recording, source="policy:run", **steps))
    recordings.append(replace(left, source="policy:run"))
    attempts = [AttemptRecord(init_state=r.init_state, num_steps=len(r), kept=True) for r in recordings if r.init_state]
    return write_dataset(tmp_path / "two", reach_store.info, recordings, attempts=attempts)


def test_each_source_has_its_share(
    two_sources: EpisodeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    diversity = measure_diversity(two_sources)
    assert not [finding for finding in diversity.findings if "no successful step" in finding.text]
    shares = {share.source: share for share in diversity.sources}
    assert shares["anna"].num + shares["policy:run"].num == 11
    assert shares["anna"].num_succeeded == shares["anna"].num
    assert shares["policy:run"].num_succeeded < shares["policy:run"].num
    nearest = [share.nearest for share in shares.values() if share.nearest is not None]
    assert all(0.2 < each < 0.8 for each in nearest)
    assert sum(nearest) > 1, "an initial state that both demonstrated counts for both"
    report = dataset_report(two_sources, diversity)
    page = report.write(tmp_path / "report.html", tmp_path / "diversity.json").read_text()
    assert "one color per source" in page
    assert "nearest to a demonstration by anna" in page
    shown = json.loads((tmp_path / "diversity.json").read_text())["sources"]
    assert [share["source"] for share in shown] == list(shares)
    monkeypatch.setenv("COLUMNS", "200")
    report.print()
    assert "nearest to a demonstration by" in capsys.readouterr().out


def test_a_single_source_is_not_compared(reach_store: EpisodeStore, tmp_path: Path) -> None:
    diversity = measure_diversity(reach_store)
    (share,) = diversity.sources
    assert (share.source, share.num, share.num_succeeded, share.nearest) == ("scripted", 10, 10, 1.0)
    page = dataset_report(reach_store, diversity).write(tmp_path / "report.html").read_text()
    assert "nearest to a demonstration by" not in page
    assert "Demonstrated initial states (blue)" in page
