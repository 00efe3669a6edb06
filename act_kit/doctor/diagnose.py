"""The doctor: runs every check of a dataset, a run, a foreign policy, or this machine, and ranks the findings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from act_kit.config.evaluation import ServedConfig
from act_kit.doctor import consistency, data, evaluations, finetuned, foreign, inference, learning, machine, records
from act_kit.doctor.case import DatasetCase, RunCase
from act_kit.doctor.finding import Finding, examine, rank, untested
from act_kit.doctor.finetuned import FinetunedCase
from act_kit.doctor.foreign_case import ForeignCase
from act_kit.errors import CheckpointError, DatasetError
from act_kit.files import quoted, read_json
from act_kit.finetuning.run import CONFIG
from act_kit.rollouts.agents import Agent

log = logging.getLogger("act_kit")

_FILES = {"zarr.json": "dataset", "config.yaml": "run", CONFIG: "fine-tuned", "summary.json": "evaluation"}
"""The file by which a target is recognized."""


def _kind_of(path: Path) -> str:
    """Return "dataset", "run", "fine-tuned", "evaluation", or "" if ``path`` is none of them."""
    for name, kind in _FILES.items():
        if (path / name).exists():
            return kind
    return ""


def find_targets(path: Path) -> list[Path]:
    """Return the run, dataset or evaluation at ``path``, or all runs and datasets inside the folder.

    Raises:
        CheckpointError: There is none.
    """
    found = [path] if _kind_of(path) else _targets_in(path)
    if not found:
        raise CheckpointError(
            f"There is neither a run (config.yaml), nor a dataset (zarr.json), nor an evaluation (summary.json) at "
            f"{path}. Fix: act doctor RUN, act doctor DATASET, act doctor EVALUATION, or act doctor alone for this "
            "machine."
        )
    return found


def _targets_in(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        kind = _kind_of(path)
        if path.is_symlink() or path.name.startswith(".") or kind == "evaluation":
            continue
        found += [path] if kind else _targets_in(path)
    return found


def examine_target(path: Path, *, num_workers: int) -> list[Finding]:
    """Run every check of the run, dataset or evaluation at ``path``; of a fine-tuned run's evaluation, of the run."""
    kind = _kind_of(path)
    if kind == "dataset":
        return examine_dataset(path)
    if kind == "fine-tuned":
        return examine(FinetunedCase(path, num_workers), finetuned.CHECKS)
    if kind == "run":
        return examine_run(path, num_workers=num_workers)
    run = _run_of(path)
    if _kind_of(run) == "fine-tuned":
        return examine_target(run, num_workers=num_workers)
    return examine_run(run, num_workers=num_workers, evaluation=path)


def _is_run(folder: Path) -> bool:
    return _kind_of(folder) in ("run", "fine-tuned")


def _run_of(evaluation: Path) -> Path:
    """Return the run of an evaluation: the one that contains its folder, or the one that it names.

    Raises:
        CheckpointError: There is none.
    """
    for folder in evaluation.resolve().parents:
        if _is_run(folder):
            return folder
    try:
        summary = read_json(evaluation / "summary.json")
        if "agent" in summary:
            raise CheckpointError(
                f"{evaluation} evaluates {summary['agent']['name']}, which is not a run of act_kit; what a file names "
                f"is not executed. Fix: {_command_for(summary['agent'], summary['task'])}"
            )
        checkpoint = Path(summary["training"]["checkpoint"])
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


def _command_for(agent: Mapping[str, Any], task: str) -> str:
    """Return the command that diagnoses the agent of an evaluation, shown what it was shown there."""
    words = ["act", "doctor", str(agent["name"]), "--task", task]
    if agent.get("n_action_steps") is not None:
        words += ["--n-action-steps", str(agent["n_action_steps"])]
    default = asdict(ServedConfig())
    for key, value in agent.get("shown", {}).items():
        if value != (list(default[key]) if isinstance(default[key], tuple) else default[key]):
            words.append(f"served.{key}={'[' + ','.join(value) + ']' if isinstance(value, list) else value}")
    return " ".join(map(quoted, words))


def examine_foreign(agent: Agent, name: str, task: str, *, num_workers: int) -> list[Finding]:
    """Run every check of a policy that is not a run of act_kit; ``name`` stands for it in the messages.

    Raises:
        ActKitError: It does not answer with actions, or the expert does not solve the task.
    """
    case = ForeignCase(agent, name, task, num_workers=num_workers)
    try:
        findings = foreign.examine_case(case)
        log.info(f"{case.num_queries} observations were shown to {name}")
        return findings
    finally:
        case.close()


def examine_dataset(path: Path) -> list[Finding]:
    """Run every check of a dataset.

    Raises:
        DatasetError: It cannot be opened; the message states the reason.
    """
    return _examine_dataset(DatasetCase(path))


def _examine_dataset(case: DatasetCase, run: RunCase | None = None) -> list[Finding]:
    """Run every check of a dataset; the fixes also train the run, if given, on the fixed dataset."""
    assert case.store is not None  # opened
    findings = []
    for finding in examine(case, data.CHECKS):
        if run:
            fix = run.train_on_fixed(case, finding.result.fix)
            finding = replace(finding, result=replace(finding.result, fix=fix))
        findings.append(_with_path(finding, "DATASET", case.path))
    return findings


def examine_machine(num_workers: int) -> list[Finding]:
    """Run every check of this machine."""
    return examine(num_workers, machine.CHECKS)


def examine_run(folder: Path, *, num_workers: int, evaluation: Path | None = None) -> list[Finding]:
    """Run every check of a run, its datasets and its evaluations, or only the one in ``evaluation``.

    Raises:
        CheckpointError: The run has no readable configuration.
    """
    case = RunCase(folder, num_workers, evaluation)
    modules = (records.CHECKS, consistency.CHECKS, learning.CHECKS, inference.CHECKS, evaluations.CHECKS)
    try:
        findings = [_with_path(finding, "RUN", folder) for finding in examine(case, *modules)]
        for dataset in case.datasets:
            try:
                findings += _examine_dataset(dataset, case)
            except DatasetError as error:
                result = replace(untested(str(error)), evidence=str(dataset.path))
                findings.append(Finding(name="dataset", stage="data", how_to_verify="open it", result=result))
    finally:
        case.close()
    return sorted(_linked(findings), key=rank)


def _with_path(finding: Finding, word: str, path: Path) -> Finding:
    """Replace ``word`` by the path of the dataset or run in the instruction for verifying a finding."""
    return replace(finding, how_to_verify=finding.how_to_verify.replace(word, quoted(path)))


def _linked(findings: Sequence[Finding]) -> list[Finding]:
    """Make poor coverage of the initial states critical if the policy memorizes its initial states."""
    statuses = {(finding.name, finding.result.status) for finding in findings}
    if ("memorizes its initial states", "SUSPECTED") not in statuses:
        return list(findings)
    linked = []
    for finding in findings:
        if finding.name == "poor coverage of initial states" and finding.result.status == "CONFIRMED":
            finding = replace(finding, result=replace(finding.result, severity="critical"))
        linked.append(finding)
    return linked


def verdict(findings: Sequence[Finding]) -> str:
    """Return the diagnosis in a sentence."""
    first = findings[0]
    result = first.result
    if first.is_fatal:
        return f"{first.name}: {result.message}"
    if result.is_fault:
        return f"Nothing critical is confirmed. {result.status.lower()}: {first.name}: {result.message}"
    return "No fault was found."
