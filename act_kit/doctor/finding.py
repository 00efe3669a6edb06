"""What a check found: how sure it is, how bad that would be, the numbers, where they come from, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from act_kit.errors import ActKitError

Stage = Literal["machine", "instrumentation", "environment", "data", "learning", "inference", "rollouts", "statistics"]
"""In order of dependence: what is wrong in one makes what the later ones say worthless."""

Status = Literal["CONFIRMED", "SUSPECTED", "RULED OUT", "UNTESTED"]
Severity = Literal["critical", "warning"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check says.

    Attributes:
        status: CONFIRMED where the numbers leave no doubt, SUSPECTED where they point there, RULED OUT where they would
            have shown it, UNTESTED where they could not be taken.
        severity: critical where it makes a success rate or a policy worthless.
        says: A sentence with the numbers.
        evidence: The files the numbers come from.
        mend: What to type.
    """

    status: Status
    severity: Severity = "warning"
    message: str
    evidence: str = ""
    fix: str = ""


def critical(message: str, evidence: object, fix: str) -> Result:
    """It is so, and makes the result worthless."""
    return Result(status="CONFIRMED", severity="critical", message=message, evidence=str(evidence), fix=fix)


def warning(message: str, evidence: object, fix: str) -> Result:
    """It is so, and worth knowing."""
    return Result(status="CONFIRMED", message=message, evidence=str(evidence), fix=fix)


def suspected(message: str, evidence: object, fix: str, *, severity: Severity = "warning") -> Result:
    """The numbers point there."""
    return Result(status="SUSPECTED", severity=severity, message=message, evidence=str(evidence), fix=fix)


def ruled_out(message: str) -> Result:
    """It was looked for, and is not so."""
    return Result(status="RULED OUT", message=message)


def untested(message: str) -> Result:
    """It could not be looked for."""
    return Result(status="UNTESTED", message=message)


Case = TypeVar("Case")


@dataclass(frozen=True, kw_only=True)
class Check(Generic[Case]):
    """Something that may be wrong with a case.

    Attributes:
        name: What would be wrong, in a few words.
        stage: Where.
        settle: The test that settles it.
        look: Looks.
    """

    name: str
    stage: Stage
    how_to_verify: str
    look: Callable[[Case], Result]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A check with its result."""

    name: str
    stage: Stage
    how_to_verify: str
    result: Result

    @property
    def is_fatal(self) -> bool:
        """Whether it is confirmed and critical."""
        return self.result.status == "CONFIRMED" and self.result.severity == "critical"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "stage": self.stage, **asdict(self.result), "how_to_verify": self.how_to_verify}


class Checks(Generic[Case]):
    """The checks of one file, in the order in which they stand there."""

    def __init__(self) -> None:
        self.all: list[Check[Case]] = []

    def add(
        self, name: str, stage: Stage, how_to_verify: str
    ) -> Callable[[Callable[[Case], Result]], Callable[[Case], Result]]:
        """Make a check of the function below."""

        def register(look: Callable[[Case], Result]) -> Callable[[Case], Result]:
            self.all.append(Check(name=name, stage=stage, how_to_verify=how_to_verify, look=look))
            return look

        return register


def examine(case: Case, *files: Checks[Case]) -> list[Finding]:
    """Make every check, and rank what they found: the surest and worst first, of those the earliest stage.

    A check that cannot be made leaves its finding UNTESTED, with the reason; a doctor that breaks off has said nothing.
    """
    findings = [
        Finding(name=check.name, stage=check.stage, how_to_verify=check.how_to_verify, result=_look(check, case))
        for checks in files
        for check in checks.all
    ]
    return rank(findings)


def rank(findings: Sequence[Finding]) -> list[Finding]:
    """Put the surest and worst first, of those the earliest stage."""
    return sorted(findings, key=_rank)


def _look(check: Check[Case], case: Case) -> Result:
    try:
        return check.look(case)
    except ActKitError as error:
        return untested(str(error))
    except Exception as error:  # files made by hand may hold anything; to be wrong about them would be worse
        return untested(f"The check itself failed: {error!r}")


def _rank(finding: Finding) -> tuple[int, int, int]:
    result = finding.result
    is_open = result.status in ("CONFIRMED", "SUSPECTED")
    return (
        (0 if result.severity == "critical" else 1) if is_open else 2,
        get_args(Status).index(result.status),
        get_args(Stage).index(finding.stage),
    )
