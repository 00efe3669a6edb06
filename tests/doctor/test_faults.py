"""A healthy run has no finding, an injected fault is ranked first, or refused by a command.

``python -m benchmarks.faults`` prints the rows that these tests record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from act_kit.doctor.diagnose import examine_run
from act_kit.doctor.finding import Finding
from tests.doctor.cases import Case
from tests.doctor.faults import FAULTS, Fault, inject
from tests.doctor.refusals import REFUSALS
from tests.doctor.sound_runs import SOUND

# All tests share one run, whose training takes half a minute.
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("doctor")]

Record = Callable[[str, object], None]

QUICK = (
    "wrong normalizer",
    "truncated checkpoint",
    "metric under another name",
    "horizon too short",
    "result edited by hand",
    "z sampled at inference",
)
"""One fault of each stage that needs no training. Run all with pytest -m slow, or benchmarks/faults.py."""


def named(name: str, *values: object) -> object:
    """Return the parameters of a test, which is slow unless its fault is quick."""
    return pytest.param(*values, marks=() if name in QUICK else pytest.mark.slow, id=name)


def diagnose(case: Case) -> list[Finding]:
    return examine_run(case.run, num_workers=1)


def test_a_healthy_run_has_no_finding(healthy: Case, record_property: Record) -> None:
    findings = diagnose(healthy)
    critical = [finding.name for finding in findings if finding.result.severity == "critical"]
    record_property("row", ["none", critical[0] if critical else "nothing critical", ""])
    assert {finding.result.status for finding in findings} == {"RULED OUT"}, findings[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_run_of_another_kind_has_no_critical_finding(
    name: str, tmp_path: Path, record_property: Record
) -> None:
    case = Case(tmp_path)
    SOUND[name](case)
    findings = diagnose(case)
    critical = [finding for finding in findings if finding.result.severity == "critical"]
    record_property("row", [f"none, {name}", critical[0].name if critical else "nothing critical", ""])
    assert not critical, critical[0]
    assert {finding.name: finding.result.status for finding in findings}["memorizes its initial states"] == "RULED OUT"


@pytest.mark.parametrize("fault", [named(fault.name, fault) for fault in FAULTS])
def test_a_fault_is_ranked_first(healthy: Case, fault: Fault, tmp_path: Path, record_property: Record) -> None:
    first = diagnose(inject(fault, healthy, tmp_path / "case"))[0]
    record_property("row", [fault.name, first.name, f"{first.result.status}, {first.result.severity}"])
    assert first.name == fault.found_as, first.result.message
    assert first.result.status in ("CONFIRMED", "SUSPECTED")
    assert first.result.evidence
    assert first.result.fix
    assert first.how_to_verify


@pytest.mark.parametrize("name", [named(name, name) for name in REFUSALS])
def test_a_refusal_names_the_fault(healthy: Case, name: str, tmp_path: Path, record_property: Record) -> None:
    refuse, phrase = REFUSALS[name]
    message = refuse(healthy.copy(tmp_path / "case"))
    record_property("row", [name, phrase, "refused"])
    assert phrase in message
