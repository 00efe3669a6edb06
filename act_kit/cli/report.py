"""``act report``: the diversity of a dataset's initial states and the integrity of its data."""

from __future__ import annotations

from pathlib import Path

import typer

from act_kit.api.report import report_datasets
from act_kit.cli.console import info
from act_kit.cli.options import command
from act_kit.files import sibling


@command
def report(dataset: Path, *, reference: str = "test", run: Path | None = None, out: Path | None = None) -> None:
    """Report the diversity of a dataset's initial states: a verdict, the numbers, a page with figures.

    Imported data without initial states are judged by the diversity of their first states and images.

    The exit code is 2 if the verdict is FAIL (of any dataset, if there are several), so that a script can stop.

    Args:
        dataset: A dataset made by act collect, or a folder of several.
        reference: Reference of the diversity: test, or the init_states.json of an evaluation.
        run: Run trained on the dataset, whose held-out loss is compared with its loss on new demonstrations.
        out: Folder of the report. [default: DATASET-report]
    """
    out = out or sibling(dataset, "-report")
    has_failed = False
    for diversity, result in report_datasets(dataset, reference=reference, run=run, out=out):
        if result:
            result.print()
        has_failed |= diversity.level == "FAIL"
    info(f"Page: {out / 'report.html'}")
    raise typer.Exit(2 if has_failed else 0)
