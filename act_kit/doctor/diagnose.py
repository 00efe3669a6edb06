"""The doctor: runs every check of a dataset, a run, or this machine, and ranks the findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from act_kit.doctor import consistency, data, evaluations, inference, learning, machine, records
from act_kit.doctor.case import DatasetCase, RunCase
from act_kit.doctor.finding import Finding, Result, examine, rank
from act_kit.doctor.machine import MachineCase
from act_kit.errors import CheckpointError, DatasetError
from act_kit.files import quoted, read_json

_COLORS = {"CONFIRMED": "bold red", "SUSPECTED": "bold yellow"}


def find_targets(path: Path) -> list[Path]:
    """Return the run, dataset or evaluation at ``path``, or all runs and datasets inside the folder.

    Raises:
        CheckpointError: There is none.
    """
    found = [path] if _is_dataset(path) or _is_run(path) or _is_evaluation(path) else []
    if not found and path.is_dir():
        for inside in sorted(path.iterdir()):
            if inside.is_dir() and not inside.is_symlink() and not inside.name.startswith("."):
                found += [] if _is_evaluation(inside) else _targets_in(inside)
    if not found:
        raise CheckpointError(
            f"There is neither a run (config.yaml), nor a dataset (zarr.json), nor an evaluation (summary.json) at "
            f"{path}. Fix: act doctor RUN, act doctor DATASET, act doctor EVALUATION, or act doctor alone for this "
            "machine."
        )
    return found


def _targets_in(folder: Path) -> list[Path]:
    try:
        return find_targets(folder)
    except CheckpointError:
        return []


def _is_dataset(path: Path) -> bool:
    return (path / "zarr.json").exists()


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists()


def _is_evaluation(path: Path) -> bool:
    return (path / "summary.json").exists()


def examine_target(path: Path, *, num_workers: int) -> list[Finding]:
    """Run every check of the run, dataset or evaluation at ``path``."""
    if _is_dataset(path):
        return examine_dataset(path)
    if _is_run(path):
        return examine_run(path, num_workers=num_workers)
    return examine_run(_run_of(path), num_workers=num_workers, evaluation=path)


def _run_of(evaluation: Path) -> Path:
    """Return the run of an evaluation: the one that contains its folder, or the one that it names.

    Raises:
        CheckpointError: There is none.
    """
    for folder in evaluation.resolve().parents:
        if _is_run(folder):
            return folder
    try:
        checkpoint = Path(read_json(evaluation / "summary.json")["training"]["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{evaluation / 'summary.json'} does not name its run: {error!r}. Fix: act doctor RUN"
        ) from error
    run = checkpoint.parent.parent
    if not _is_run(run):
        raise CheckpointError(
            f"{evaluation} evaluates the run {run}, which does not exist. Fix, if it was moved: act doctor RUN"
        )
    return run


def examine_dataset(path: Path) -> list[Finding]:
    """Run every check of a dataset.

    Raises:
        DatasetError: It cannot be opened; the message states the reason.
    """
    case = DatasetCase(path)
    assert case.store
    return [_with_path(finding, "DATASET", path) for finding in examine(case, data.CHECKS)]


def examine_machine(num_workers: int) -> list[Finding]:
    """Run every check of this machine."""
    return examine(MachineCase(num_workers), machine.CHECKS)


def examine_run(folder: Path, *, num_workers: int, evaluation: Path | None = None) -> list[Finding]:
    """Run every check of a run, its datasets and its evaluations, or only the one in ``evaluation``.

    Raises:
        CheckpointError: The run has no readable configuration.
    """
    case = RunCase(folder, num_workers, evaluation)
    try:
        run_findings = examine(
            case, records.CHECKS, consistency.CHECKS, learning.CHECKS, inference.CHECKS, evaluations.CHECKS
        )
        findings = [_with_path(finding, "RUN", folder) for finding in run_findings]
        for dataset in case.datasets:
            try:
                assert dataset.store
                findings += [_with_training(case, dataset, finding) for finding in examine(dataset, data.CHECKS)]
            except DatasetError as error:
                result = Result(status="UNTESTED", message=str(error), evidence=str(dataset.path))
                findings.append(Finding(name="dataset", stage="data", how_to_verify="open it", result=result))
    finally:
        case.close()
    return rank(_linked(findings))


def _with_training(case: RunCase, dataset: DatasetCase, finding: Finding) -> Finding:
    """Append the command that trains the run on the fixed dataset to the fix of a dataset's fault."""
    fix = case.train_on_fixed(dataset, finding.result.fix)
    return _with_path(replace(finding, result=replace(finding.result, fix=fix)), "DATASET", dataset.path)


def _with_path(finding: Finding, word: str, path: Path) -> Finding:
    """Replace ``word`` by the path of the dataset or run in the instruction for verifying a finding."""
    return replace(finding, how_to_verify=finding.how_to_verify.replace(word, quoted(path)))


def _linked(findings: Sequence[Finding]) -> list[Finding]:
    """Make poor coverage of the initial states critical if the policy memorizes its initial states."""
    suspected = {finding.name for finding in findings if finding.result.status == "SUSPECTED"}
    if "memorizes its initial states" not in suspected:
        return list(findings)
    linked = []
    for finding in findings:
        if finding.name == "poor coverage of initial states" and finding.result.status == "CONFIRMED":
            finding = replace(finding, result=replace(finding.result, severity="critical"))
        linked.append(finding)
    return linked


def describe(finding: Finding) -> Text:
    """Return a finding for the terminal: message, evidence, how to verify it, and fix."""
    result = finding.result
    lines = [
        result.message,
        f"Evidence: {result.evidence}",
        f"To verify: {finding.how_to_verify}",
        f"Fix: {result.fix}",
    ]
    head = f"{result.status}, {result.severity} · {finding.stage} · {finding.name}"
    return Text.assemble((head, _COLORS[result.status]), *(f"\n    {line}" for line in lines))


def summary_lines(findings: Sequence[Finding]) -> list[str]:
    """List the faults that were ruled out or could not be tested, in one line per reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.result.status in ("RULED OUT", "UNTESTED"):
            names.setdefault((finding.result.status.lower(), finding.result.message), []).append(finding.name)
    return [f"{status}: {', '.join(faults)}. {message}" for (status, message), faults in names.items()]


def verdict(findings: Sequence[Finding]) -> str:
    """Return the diagnosis in a sentence."""
    first = findings[0]
    result = first.result
    if first.is_fatal:
        return f"{first.name}: {result.message}"
    if result.status in ("CONFIRMED", "SUSPECTED"):
        return f"Nothing critical is confirmed. {result.status.lower()}: {first.name}: {result.message}"
    return "No fault was found."
