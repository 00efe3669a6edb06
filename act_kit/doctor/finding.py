"""Checks and findings of the doctor: certainty, severity, message with numbers, evidence, and fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import wraps
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

    @property
    def is_fault(self) -> bool:
        """True if the fault is confirmed or suspected."""
        return self.status in ("CONFIRMED", "SUSPECTED")


def critical(message: str, evidence: object = "", fix: str = "") -> Result:
    """Return a confirmed fault that invalidates a success rate or a policy."""
    return Result(status="CONFIRMED", severity="critical", message=message, evidence=str(evidence), fix=fix)


def warning(message: str, evidence: object = "", fix: str = "") -> Result:
    """Return a confirmed fault that does not invalidate the results."""
    return Result(status="CONFIRMED", message=message, evidence=str(evidence), fix=fix)


def suspected(message: str, evidence: object = "", fix: str = "", *, severity: Severity = "warning") -> Result:
    """Return a fault that the measurements suggest but do not prove."""
    return Result(status="SUSPECTED", severity=severity, message=message, evidence=str(evidence), fix=fix)


def ruled_out(message: str) -> Result:
    """Return the result of a check that excludes the fault."""
    return Result(status="RULED OUT", message=message)


def untested(message: str) -> Result:
    """Return the result of a check that could not be run."""
    return Result(status="UNTESTED", message=message)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check, with the name and the stage of its fault, and how the user can verify it."""

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


Case = TypeVar("Case")


class Checks(Generic[Case]):
    """The checks of one module, in the order of their definition. A case is what they examine."""

    def __init__(
        self,
        locate: Callable[[Case, str], object] = lambda case, name: name,
        fix: Callable[[Case], str] = lambda case: "",
    ) -> None:
        """``locate`` returns the path of a file of the case; ``fix`` the fix of faults that give none."""
        self._checks: list[tuple[str, Stage, str, Callable[[Case], Result]]] = []
        self._locate = locate
        self._fix = fix

    def add(
        self, name: str, stage: Stage, how_to_verify: str, evidence: str = ""
    ) -> Callable[[Callable[[Case], Result]], Callable[[Case], Result]]:
        """Return a decorator that registers a function as the check for a fault.

        Args:
            name: Name of the fault, in a few words.
            stage: Stage in which the fault occurs.
            how_to_verify: A test with which the user can verify the finding.
            evidence: File with the evidence of faults that name none.
        """

        def register(run: Callable[[Case], Result]) -> Callable[[Case], Result]:
            @wraps(run)
            def check(case: Case) -> Result:
                result = run(case)
                if result.is_fault and not result.evidence:
                    result = replace(result, evidence=str(self._locate(case, evidence)))
                if result.is_fault and not result.fix:
                    result = replace(result, fix=self._fix(case))
                return result

            self._checks.append((name, stage, how_to_verify, check))
            return check

        return register

    def run(self, case: Case) -> list[Finding]:
        """Run every check. One that fails is UNTESTED, with the reason: the other findings are still reported."""
        findings = []
        for name, stage, how_to_verify, check in self._checks:
            try:
                result = check(case)
            except ActKitError as error:
                result = untested(str(error))
            except Exception as error:  # hand-edited files may hold anything; a crash would hide the other findings
                result = untested(f"The check itself failed: {error!r}")
            findings.append(Finding(name=name, stage=stage, how_to_verify=how_to_verify, result=result))
        return findings


def examine(case: Case, *modules: Checks[Case]) -> list[Finding]:
    """Run every check and rank the findings: critical, confirmed and early ones first."""
    findings = []
    for checks in modules:
        findings += checks.run(case)
    return sorted(findings, key=rank)


def rank(finding: Finding) -> tuple[int, int, int]:
    """Return the sort key of a finding: by severity, certainty and stage."""
    result = finding.result
    severity = get_args(Severity).index(result.severity) if result.is_fault else 2
    return severity, get_args(Status).index(result.status), get_args(Stage).index(finding.stage)
