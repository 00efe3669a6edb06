"""Report of the doctor: the faults with numbers, evidence and fix, what was ruled out, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from act_kit.doctor.diagnose import verdict
from act_kit.doctor.finding import Finding
from act_kit.reports.report import Level, Report, Section


def diagnosis_report(name: str, findings: Sequence[Finding]) -> Report:
    """Return the report on ``name``, of which the findings are, the most severe first."""
    faults = [finding for finding in findings if finding.result.is_fault]
    return Report(
        kind="diagnosis",
        title=name,
        verdicts=[(_verdict_level(findings), verdict(findings))],
        notes=_summary_lines(findings),
        sections=list(map(_section, faults)),
        data=[finding.to_dict() for finding in findings],
    )


def _verdict_level(findings: Sequence[Finding]) -> Level:
    if findings[0].is_fatal:
        return "FAIL"
    return "WARN" if findings[0].result.is_fault else "OK"


def _section(finding: Finding) -> Section:
    """Return a fault: message, evidence, how to verify it, and fix."""
    result = finding.result
    lines = (
        result.message,
        f"Evidence: {result.evidence}",
        f"To verify: {finding.how_to_verify}",
        f"Fix: {result.fix}",
    )
    return Section(
        title=f"{result.status}, {result.severity} · {finding.stage} · {finding.name}",
        text="\n".join(lines),
        level="FAIL" if result.status == "CONFIRMED" else "WARN",
        in_terminal=True,
    )


def _summary_lines(findings: Sequence[Finding]) -> list[str]:
    """List the faults that were ruled out or could not be tested, in one line per reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if not finding.result.is_fault:
            names.setdefault((finding.result.status.lower(), finding.result.message), []).append(finding.name)
    return [f"{status}: {', '.join(faults)}. {message}" for (status, message), faults in names.items()]
