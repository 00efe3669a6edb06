"""Tests of the report of datasets."""

from __future__ import annotations

from pathlib import Path

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import measure_diversity
from act_kit.reports.dataset import datasets_report


def test_links_lead_to_folders_of_any_name(reach_store: EpisodeStore, tmp_path: Path) -> None:
    diversity = measure_diversity(reach_store)
    names = ("100% #1?", "javascript:alert(1)")
    page = datasets_report([(name, diversity) for name in names], tmp_path).write(tmp_path / "report.html").read_text()
    assert 'href="100%25%20%231%3F/report.html"' in page
    assert "javascript:alert(1)</a>" in page
    assert 'href="javascript%3Aalert%281%29/report.html"' in page
