"""The command line: one module per verb, each of whose bodies reads as what the verb does."""

from __future__ import annotations

import errno
import sys

import typer

from act_kit.cli import collect, compare, data, demo, doctor, evaluate, render, report, train
from act_kit.cli.console import complain
from act_kit.errors import ActKitError

app = typer.Typer(
    name="act",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Imitation learning with ACT on Meta-World: collect, look at the data, train, evaluate.\n\n"
    "[bold]act demo[/] shows the whole way in minutes. Otherwise: [bold]act collect[/], [bold]act report[/], "
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


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit code 2, never in a traceback."""
    try:
        app(prog_name="act")
    except ActKitError as error:
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        complain("Stopped.")
        sys.exit(130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            complain(
                f"No space left on the device ({error.filename or 'while writing'}). Free some and go on: --resume"
            )
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            complain(f"{error.filename} cannot be written: {error.strerror}. Choose another --out.")
        elif error.errno in (errno.EIO, errno.EDQUOT):
            complain(
                f"{error.filename or 'A file'} cannot be read or written: {error.strerror}. What is complete is kept."
            )
        elif error.errno == errno.ENAMETOOLONG:
            complain(f"'{str(error.filename)[:80]}…' cannot be the name of a file: it is too long. Choose another.")
        else:
            raise
        sys.exit(2)
