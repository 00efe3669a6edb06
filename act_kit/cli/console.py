"""The terminal: where messages go, and progress bars."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a line as it is: brackets in it are not markup."""
    console.print(Text(message), soft_wrap=True)


def complain(message: str) -> None:
    """Print an error or a warning, on standard error."""
    errors.print(Text(message, style="red"))


def progress_bar(*fields: str, disable: bool = False) -> Progress:
    """Return a progress bar whose tasks carry text in ``fields``; ``disable`` shows nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=disable,
    )


@contextmanager
def interrupts_deferred() -> Generator[Callable[[], None]]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish, which the function that is yielded fulfils when called.

    An exception thrown into whatever happens to run, a clean-up of some library, say, may be swallowed there; the
    second Ctrl-C throws it all the same.
    """
    interrupted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    def raise_if_interrupted() -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield raise_if_interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
