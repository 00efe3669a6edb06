"""The application with all verbs, and the handling of their errors."""

from __future__ import annotations

import errno
import io
import sys
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli import collect, compare, data, demo, doctor, evaluate, render, report, train
from act_kit.cli.console import info, warn
from act_kit.errors import ActKitError

app = typer.Typer(
    name="act",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Imitation learning with ACT on Meta-World: collect, inspect the data, train, evaluate.\n\n"
    "[bold]act demo[/] runs the whole pipeline in minutes. The steps are [bold]act collect[/], [bold]act report[/], "
    "[bold]act train[/], [bold]act eval[/], in this order.",
)
app.command("collect")(collect.collect)
app.command("report")(report.report)
app.command("render")(render.render)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        from act_kit.versions import versions

        info(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def act(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions, and exit.")
    ] = False,
) -> None:
    """Accept the options that precede a verb; the help text is the application's."""


def run() -> None:
    """Run the command line with the arguments of this process, and end it with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for characters that this terminal or file cannot encode
    try:
        app(prog_name="act")
    except BaseException as error:
        # A child process may receive the signal first; then its exit is the error that arrives here.
        if interrupts.interrupted() or isinstance(error, KeyboardInterrupt):
            interrupts.report_interruption()
            sys.exit(interrupts.EXIT_CODE)
        explanation = _explain(error)
        if explanation is None:
            raise
        warn(explanation)
        sys.exit(2)


def _explain(error: BaseException) -> str | None:
    """Return the message of an error that the user can fix; None for all others."""
    if isinstance(error, ActKitError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    place = error.filename or "while writing"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space left on the device ({place}). Fix: free some space.{interrupts.resume_hint()}"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{place} cannot be read or written: {error.strerror}."
    if error.errno == errno.EIO:
        return f"{place} cannot be read or written: {error.strerror}. Complete data are kept.{interrupts.resume_hint()}"
    if str(error.strerror).startswith("No usable temporary directory"):
        return f"{error.strerror}: they are full or read-only. Fix: export TMPDIR=FOLDER.{interrupts.resume_hint()}"
    if error.errno == errno.ENAMETOOLONG:
        return f"'{str(error.filename)[:80]}…' is too long for the name of a file. Fix: choose a shorter name."
    return None
