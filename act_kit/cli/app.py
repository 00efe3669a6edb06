"""The application with all verbs, and the handling of their errors."""

from __future__ import annotations

import errno
import io
import sys
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.api.progress import log
from act_kit.cli import (
    collect,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    monitor,
    render,
    report,
    serve,
    train,
)
from act_kit.cli.console import LogHandler, info, warn
from act_kit.errors import ActKitError

app = typer.Typer(
    name="act",
    no_args_is_help=True,
    rich_markup_mode=None,  # its columns cut off long flags in a narrow terminal
    pretty_exceptions_enable=False,
    help="Imitation learning with ACT on Meta-World: collect, inspect the data, train, evaluate.\n\n"
    "act demo runs the whole pipeline in minutes. The steps are act collect, act report, act train, act eval, in this "
    "order.",
)
for name, verb, summary in (
    ("collect", collect.collect, "Collect demonstrations from random initial states."),
    ("report", report.report, "Report the diversity of a dataset's initial states."),
    ("render", render.render, "Add images to a dataset."),
    ("train", train.train, "Train a policy on one or several tasks."),
    ("eval", evaluate.evaluate, "Evaluate a policy, with baselines and videos."),
    ("finetune", finetune.finetune, "Improve a policy by reinforcement learning."),
    ("monitor", monitor.monitor, "Make an alarm for a policy that is lost while it acts."),
    ("serve", serve.serve, "Serve a policy over WebSocket."),
    ("compare", compare.compare, "Compare policies or training methods."),
    ("export", export.export, "Export a policy to an ONNX file."),
    ("doctor", doctor.doctor, "Find out why a policy fails, or check the data."),
    ("demo", demo.demo, "Show why diversity matters, in minutes."),
):
    app.command(name, short_help=summary)(verb)
app.add_typer(data.app, name="data")


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
    log.handlers = [LogHandler()]
    log.setLevel("INFO")
    log.propagate = False
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
        return f"{place} cannot be read or written: {error.strerror}. Fix: change its permissions, or name another."
    if error.errno == errno.EIO:
        return f"{place} cannot be read or written: {error.strerror}. Complete data are kept.{interrupts.resume_hint()}"
    if str(error.strerror).startswith("No usable temporary directory"):
        return f"{error.strerror}: they are full or read-only. Fix: export TMPDIR=FOLDER.{interrupts.resume_hint()}"
    if error.errno == errno.ENAMETOOLONG:
        return f"'{str(error.filename)[:80]}…' is too long for the name of a file. Fix: choose a shorter name."
    return None
