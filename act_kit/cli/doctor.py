"""``act doctor``: diagnosis of a run, a dataset, an evaluation or this machine."""

from __future__ import annotations

from pathlib import Path

import typer

from act_kit.api.diagnose import diagnose_each
from act_kit.cli.console import console
from act_kit.cli.options import Workers, command


@command
def doctor(target: Path | None = None, *, out: Path | None = None, workers: Workers = 0) -> None:
    """Find out why a policy fails, or check a dataset or this machine for faults.

    Reads logs, data, checkpoint and evaluations, measures missing values, and ranks the findings. The exit code is 2 if
    a critical fault is confirmed.

    Args:
        target: A run, a dataset, an evaluation, or a folder of runs and datasets. Default: this machine.
        out: JSON file for the findings. [default: none]
    """
    from rich.text import Text

    is_fatal = False
    for diagnosis in diagnose_each(target, out=out, workers=workers):
        console.rule(Text(diagnosis.name), align="left")
        console.print(diagnosis, soft_wrap=True)
        is_fatal = is_fatal or diagnosis.is_fatal
    raise typer.Exit(2 if is_fatal else 0)
