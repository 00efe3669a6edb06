"""``diagnose``: diagnosis of a run, a dataset, an evaluation or this machine."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit.errors import CheckpointError, OutputError
from act_kit.files import quoted, write_json
from act_kit.outputs import restore_output
from act_kit.preflight import kind_of, require_writable
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from act_kit.doctor.finding import Finding


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Findings on one run, dataset, evaluation or machine, the most severe first; prints itself.

    Attributes:
        name: Path of what was examined, or ``this machine``.
        findings: One finding for each fault that was checked.
    """

    name: str
    findings: list[Finding]

    @property
    def is_fatal(self) -> bool:
        """True if a critical fault is confirmed."""
        return any(finding.is_fatal for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The diagnosis in a sentence."""
        from act_kit.doctor.diagnose import verdict

        return verdict(self.findings)

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        from act_kit.doctor.diagnose import describe, summary_lines

        lines = [describe(finding) for finding in self.findings if finding.result.is_fault]
        lines += map(Text, summary_lines(self.findings))
        lines.append(Text(self.verdict, style="bold red" if self.is_fatal else "bold"))
        return Text("\n").join(lines)

    def __str__(self) -> str:
        return f"{self.name}\n{self.__rich__()}"


def diagnose(target: str | Path | None = None, *, out: str | Path | None = None, workers: int = 0) -> list[Diagnosis]:
    """Find out why a policy fails, or check a dataset or this machine for faults, as ``act doctor`` does.

    Args:
        target: A run, a dataset, an evaluation, or a folder of runs and datasets; None for this machine.
        out: JSON file for the findings.
        workers: Simulation processes; 0 = one per processor.

    Raises:
        ActKitError: There is neither a run nor a dataset at ``target``, or ``out`` is a folder.
    """
    end_if_importing()
    return list(diagnose_each(target, out=out, workers=workers))


def diagnose_each(
    target: str | Path | None = None, *, out: str | Path | None = None, workers: int = 0
) -> Generator[Diagnosis]:
    """Yield the diagnoses of :func:`diagnose`, each as soon as it is made."""
    target = Path(target) if target else None
    if target:
        restore_output(target)
    if target and not (kind_of(target) or any(map(kind_of, target.glob("[!.]*")))):
        raise CheckpointError(
            f"There is neither a run (config.yaml) nor a dataset (zarr.json) at {target}. Fix: act doctor RUN, act "
            "doctor DATASET, or act doctor alone for this machine."
        )
    if out:
        out = Path(out)
        require_writable(out.parent)
        if out.is_dir():
            raise OutputError(f"{out} is a folder. Fix: name a file, such as --out {quoted(out / 'doctor.json')}")
    from act_kit.doctor.diagnose import examine_machine, examine_target, find_targets

    num_workers = workers or num_cpus()
    found = {}
    for each in find_targets(target) if target else [None]:
        findings = examine_target(each, num_workers=num_workers) if each else examine_machine(num_workers)
        diagnosis = Diagnosis(name=str(each or "this machine"), findings=findings)
        found[diagnosis.name] = [finding.to_dict() for finding in findings]
        yield diagnosis
    if out:
        write_json(out, found)
