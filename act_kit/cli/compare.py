"""``act compare``: a statistical comparison of policies or training methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api import compare as comparing
from act_kit.cli.console import info
from act_kit.cli.options import Overwrite


def compare(
    methods: Annotated[
        list[Path],
        typer.Argument(help="Evaluations, runs, or folders of runs of several training seeds.", show_default=False),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(help="Option that may differ between the methods, a group of options, or data; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of compare.json and compare.html.")] = Path("comparison"),
    overwrite: Overwrite = False,
) -> None:
    """Compare evaluations: better, worse, no difference shown, or CONFOUNDED by differences other than --vary.

    A comparison of methods takes at least three training seeds of each (act train --seeds); fewer compare checkpoints.

    \b
    act compare runs/chunks-of-8 runs/chunks-of-16 --vary policy.chunk_size

    The exit code is 2 if a comparison has no verdict.
    """
    comparison = comparing.compare(methods, vary=vary or [], out=out, overwrite=overwrite)
    from act_kit.reports.comparison import comparison_report

    comparison_report(comparison).print()
    info(f"Page: {out / 'compare.html'}")
    raise typer.Exit(0 if comparison.decided else 2)
