"""``act compare``: a statistical comparison of policies or training methods."""

from __future__ import annotations

from pathlib import Path

import typer

from act_kit.api import compare as comparing
from act_kit.cli.console import info
from act_kit.cli.options import Overwrite, command


@command
def compare(
    methods: list[Path], *, vary: list[str] | None = None, out: Path = Path("comparison"), overwrite: Overwrite = False
) -> None:
    """Compare evaluations: better, worse, no difference shown, or CONFOUNDED by differences other than --vary.

    A comparison of methods needs at least three training seeds of each (act train --seeds); with fewer, checkpoints are
    compared.

    \b
    act compare runs/chunks-of-8 runs/chunks-of-16 --vary policy.chunk_size

    The exit code is 2 if a comparison has no verdict.

    Args:
        methods: Evaluations, runs, or folders of runs of several training seeds.
        vary: Option that may differ between the methods, a group of options, or data; repeatable.
        out: Folder of compare.json and compare.html.
    """
    comparison = comparing.compare(methods, vary=vary or [], out=out, overwrite=overwrite)
    from act_kit.reports.comparison import comparison_report

    comparison_report(comparison).print()
    info(f"Page: {out / 'compare.html'}")
    raise typer.Exit(0 if comparison.decided else 2)
