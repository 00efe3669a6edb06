"""Tables whose rows are recorded by tests, so that a test and its benchmark measure the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest


class _Rows:
    """Runs only the tests that record a row, and prints each row when its test ends."""

    def __init__(self, only: Sequence[str]) -> None:
        self._only = only

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        pattern = re.compile("|".join(map(re.escape, self._only)))
        recording = (item for item in items if "record_property" in getattr(item, "fixturenames", ()))
        items[:] = [item for item in recording if pattern.search(item.name)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        recorded: dict[str, Any] = dict(report.user_properties)
        row = " | ".join(map(str, recorded.get("row", [report.nodeid.partition("[")[2].rstrip("]")])))
        if report.failed:
            reason = report.longreprtext.strip().splitlines()[-1]
            print(f"| {row} | FAILED in {reason} |", flush=True)
        elif report.when == "call" and report.passed:
            print(f"| {row} |", flush=True)


def print_rows(*tests: str, only: Sequence[str] = ("",), options: Sequence[str] = ()) -> int:
    """Run the tests whose names contain one of ``only``, slow ones too, and print their rows; return the exit code."""
    quiet = ("-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider")
    return int(pytest.main([*quiet, *options, *tests], plugins=[_Rows(only)]))
