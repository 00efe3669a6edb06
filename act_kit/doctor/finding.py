"""Checks and findings of the doctor: certainty, severity, message with numbers, evidence, and fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from act_kit.errors import ActKitError

Stage = Literal["machine", "instrumentation", "environment", "data", "learning", "inference", "rollouts", "statistics"]
"""Stages in order of dependence: a fault in one stage invalidates the results of later ones."""

Status = Literal["CONFIRMED", "SUSPECTED", "RULED OUT", "UNTESTED"]
Severity = Literal["critical", "warning"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a check.

    Attributes:
        status: CONFIRMED if the measurements prove the fault, SUSPECTED if they suggest it, RULED OUT if they exclude
            it, UNTESTED if they could not be made.
        severity: critical if the fault invalidates a success rate or a policy.
        message: A sentence with the numbers.
        evidence: The files from which the numbers were taken.
        fix: The command to type.
    """

    status: Status
    severity: Severity = "warning"
    message: str
    evidence: str = ""
    fix: str = ""


def critical(message: str, evidence: object, fix: str) -> Result:
    """Return a confirmed fault that invalidates a success rate or a policy."""
    return Result(status="CONFIRMED", severity="critical", message=message, evidence=str(evidence), fix=fix)


def warning(message: str, evidence: object, fix: str) -> Result:
    """Return a confirmed fault that does not invalidate the results."""
    return Result(status="CONFIRMED", message=message, evidence=str(evidence), fix=fix)


def suspected(message: str, evidence: object, fix: str, *, severity: Severity = "warning") -> Result:
    """Return a fault that the measurements suggest but do not prove."""
    return Result(status="SUSPECTED", severity=severity, message=message, evidence=str(evidence), fix=fix)


def ruled_out(message: str) -> Result:
    """Return the result of a check that excludes the fault."""
    return Result(status="RULED OUT", message=message)


def untested(message: str) -> Result:
    """Return the result of a check that could not be run."""
    return Result(status="UNTESTED", message=message)


Case = TypeVar("Case")


@dataclass(frozen=True, kw_only=True)
class Check(Generic[Case]):
    """A test for one possible fault of a case.

    Attributes:
        name: Name of the fault, in a few words.
        stage: Stage in which the fault occurs.
        how_to_verify: A test with which the user can verify the finding.
        run: The function that tests for the fault.
    """

    name: str
    stage: Stage
    how_to_verify: str
    run: Callable[[Case], Result]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A check with its result."""

    name: str
    stage: Stage
    how_to_verify: str
    result: Result

    @property
    def is_fatal(self) -> bool:
        """True if the fault is confirmed and critical."""
        return self.result.status == "CONFIRMED" and self.result.severity == "critical"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {"name": self.name, "stage": self.stage, **asdict(self.result), "how_to_verify": self.how_to_verify}


class Checks(Generic[Case]):
    """The checks of one module, in the order of their definition."""

    def __init__(self) -> None:
        self.all: list[Check[Case]] = []

    def add(
        self, name: str, stage: Stage, how_to_verify: str
    ) -> Callable[[Callable[[Case], Result]], Callable[[Case], Result]]:
        """Return a decorator that registers a function as a check."""

        def register(run: Callable[[Case], Result]) -> Callable[[Case], Result]:
            self.all.append(Check(name=name, stage=stage, how_to_verify=how_to_verify, run=run))
            return run

        return register


def examine(case: Case, *modules: Checks[Case]) -> list[Finding]:
    """Run every check and rank the findings.

    A check that fails yields an UNTESTED finding with the reason, so that the other findings are still reported.
    """
    findings = []
    for checks in modules:
        for check in checks.all:
            result = _run_check(check, case)
            findings.append(
                Finding(name=check.name, stage=check.stage, how_to_verify=check.how_to_verify, result=result)
            )
    return rank(findings)


def rank(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by severity, certainty and stage: critical, confirmed and early ones first."""
    return sorted(findings, key=_rank)


def _run_check(check: Check[Case], case: Case) -> Result:
    try:
        return check.run(case)
    except ActKitError as error:
        return untested(str(error))
    except Exception as error:  # hand-edited files may hold anything; a crash would hide the other findings
        return untested(f"The check itself failed: {error!r}")


def _rank(finding: Finding) -> tuple[int, int, int]:
    result = finding.result
    is_open = result.status in ("CONFIRMED", "SUSPECTED")
    return (
        (0 if result.severity == "critical" else 1) if is_open else 2,
        get_args(Status).index(result.status),
        get_args(Stage).index(finding.stage),
    )
