"""``act report``: does a dataset cover the starts its policy will be evaluated from?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import console, say


def report(
    dataset: Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="DATASET-report")] = None,
) -> None:
    """Report the diversity of a dataset's starts: a verdict, the numbers, a page with pictures.

    The exit code is 2 if the verdict is FAIL, so that a script can stop there.
    """
    from rich.text import Text

    from act_kit.datasets.diversity import measure
    from act_kit.datasets.report import COLOURS, terminal_table, write_report
    from act_kit.datasets.store import EpisodeStore

    store = EpisodeStore.open(dataset)
    diversity = measure(store)
    page = write_report(store, diversity, out or dataset.with_name(dataset.name + "-report"))
    console.print(terminal_table(diversity))
    console.print(Text(diversity.verdict, style=f"bold {COLOURS[diversity.level]}"), soft_wrap=True)
    say(f"Page: {page}")
    raise typer.Exit(2 if diversity.level == "FAIL" else 0)
