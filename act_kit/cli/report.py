"""``act report``: the diversity of a dataset's initial states and the integrity of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api.report import report_datasets
from act_kit.cli.console import info


def report(
    dataset: Annotated[
        Path, typer.Argument(help="A dataset made by act collect, or a folder of several.", show_default=False)
    ],
    reference: Annotated[
        str, typer.Option(help="Reference of the diversity: test, or the init_states.json of an evaluation.")
    ] = "test",
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run trained on the dataset, whose held-out loss is compared with its loss on new demonstrations."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="DATASET-report")] = None,
) -> None:
    """Report the diversity of a dataset's initial states: a verdict, the numbers, a page with figures.

    For imported data without initial states: the diversity of their first states and images.

    The exit code is 2 if the verdict is FAIL (of any dataset, if there are several), so that a script can stop.
    """
    out = out or dataset.with_name(dataset.resolve().name + "-report")
    has_failed = False
    for diversity, result in report_datasets(dataset, reference=reference, run=run, out=out):
        if result:
            result.print()
        has_failed |= diversity.level == "FAIL"
    info(f"Page: {out / 'report.html'}")
    raise typer.Exit(2 if has_failed else 0)
