"""``act doctor``: diagnosis of a run, a dataset, an evaluation or this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from act_kit.cli.console import console, info
from act_kit.cli.options import Workers, count_workers
from act_kit.cli.preflight import kind_of, require_writable
from act_kit.errors import CheckpointError, OutputError
from act_kit.files import quoted
from act_kit.outputs import restore_output


def doctor(
    target: Annotated[
        Path | None,
        typer.Argument(
            help="A run, a dataset, an evaluation, or a folder of runs and datasets. Default: this machine.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the findings.", show_default="none")] = None,
    workers: Workers = 0,
) -> None:
    """Find out why a policy fails, or check a dataset or this machine for faults.

    Reads logs, data, checkpoint and evaluations, measures missing values, and ranks the findings. The exit code is 2 if
    a critical fault is confirmed.
    """
    if target:
        restore_output(target)
    if target and not (kind_of(target) or any(map(kind_of, target.glob("[!.]*")))):
        raise CheckpointError(
            f"There is neither a run (config.yaml) nor a dataset (zarr.json) at {target}. Fix: act doctor RUN, act "
            "doctor DATASET, or act doctor alone for this machine."
        )
    if out:
        require_writable(out.parent)
        if out.is_dir():
            raise OutputError(f"{out} is a folder. Fix: name a file, such as --out {quoted(out / 'doctor.json')}")
    from rich.text import Text

    from act_kit.doctor.diagnose import (
        describe,
        examine_machine,
        examine_target,
        find_targets,
        summary_lines,
        verdict,
    )
    from act_kit.files import write_json

    num_workers = count_workers(workers)
    found: dict[str, list[dict[str, Any]]] = {}
    is_fatal = False
    for each in find_targets(target) if target else [None]:
        name = str(each or "this machine")
        console.rule(Text(name), align="left")
        findings = examine_target(each, num_workers=num_workers) if each else examine_machine(num_workers)
        for finding in findings:
            if finding.result.status in ("CONFIRMED", "SUSPECTED"):
                console.print(describe(finding), soft_wrap=True)
        for line in summary_lines(findings):
            info(line)
        has_failed = any(finding.is_fatal for finding in findings)
        console.print(Text(verdict(findings), style="bold red" if has_failed else "bold"), soft_wrap=True)
        found[name] = [finding.to_dict() for finding in findings]
        is_fatal = is_fatal or has_failed
    if out:
        write_json(out, found)
    raise typer.Exit(2 if is_fatal else 0)
