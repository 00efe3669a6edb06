"""``act compare``: a statistical comparison of policies or training methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import console, info, warn
from act_kit.cli.options import Overwrite
from act_kit.errors import ComparisonError, OutputError
from act_kit.outputs import prepare_output, restore_output


def compare(
    methods: Annotated[
        list[Path],
        typer.Argument(help="Evaluations, runs, or folders of runs of several training seeds.", show_default=False),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Option that may differ between the methods, a group of options, or data; repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of compare.json and compare.html.")] = Path("comparison"),
    overwrite: Overwrite = False,
) -> None:
    """Compare evaluations: better, worse, no difference shown, or CONFOUNDED by differences other than --vary.

    A comparison of methods takes at least three training seeds of each (act train --seeds); fewer compare checkpoints.

    [dim]act compare runs/chunks-of-8 runs/chunks-of-16 --vary policy.chunk_size[/]

    The exit code is 2 if a comparison has no verdict.
    """
    for path in methods:
        restore_output(path)
        if not path.is_dir():
            raise ComparisonError(f"There is no folder {path}.")
    check_output(out, overwrite=overwrite)
    from rich.table import Table
    from rich.text import Text

    from act_kit.compare import compare as comparing
    from act_kit.reports.comparison import COLORS, PAIR_COLUMNS, methods_table, pair_rows, write_comparison

    comparison = comparing.compare(methods, vary or [])
    page = write_comparison(comparison, out)
    console.print(methods_table(comparison.methods))
    table = Table(*PAIR_COLUMNS)
    for pair in comparison.pairs:
        for row in pair_rows(pair):
            table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table)
    for note in comparison.notes:
        warn(note)
    for pair in comparison.pairs:
        console.print(Text(pair.sentence, style=f"bold {COLORS.get(pair.verdict, 'red')}"), soft_wrap=True)
    info(f"Page: {page}")
    raise typer.Exit(0 if comparison.decided else 2)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse to overwrite an earlier comparison unless ``overwrite`` is True.

    Other files in the folder are never changed, so ``overwrite`` cannot delete the compared runs.

    Raises:
        OutputError: ``out`` holds a comparison, or is not a folder.
    """
    existing = [out / name for name in ("compare.json", "compare.html") if (out / name).exists()]
    if existing and not overwrite:
        raise OutputError(f"{existing[0]} exists. Fix: --overwrite replaces it, or choose another --out.")
    if not out.is_dir():
        prepare_output(out, overwrite=False)
